"""The papers' tables and figures: one module for each, with what is measured for it and how it is shown."""
