"""What of the papers' tables and figures holds, under their own protocol, the release's, and a strong attack?"""
