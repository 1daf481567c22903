"""How much each training pair counts: CCD and alternatives."""
