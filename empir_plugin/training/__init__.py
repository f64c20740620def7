"""How are members made?"""
