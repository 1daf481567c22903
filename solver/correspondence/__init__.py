"""How much each training pair counts: CCD and its rivals."""
