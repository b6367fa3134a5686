"""What a run would take on devices that are not there: its programs compiled, and looked at."""
