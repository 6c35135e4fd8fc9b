"""Numbers that how-to pages state, by the pages' own code."""
