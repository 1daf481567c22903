"""How much each training pair counts: CCD and what it is compared with."""
