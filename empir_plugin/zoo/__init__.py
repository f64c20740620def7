"""Which models have a name?"""
