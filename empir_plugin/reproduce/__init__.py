"""Do the papers' tables and figures hold: by the released code, by the paper's wording, and under strong attacks?"""
