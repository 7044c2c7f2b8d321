"""The system inside a box: its two channels (the agent and SSH), its readiness, identity and repair."""
