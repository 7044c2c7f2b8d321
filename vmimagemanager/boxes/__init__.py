"""One file per thing that is done to a box."""
