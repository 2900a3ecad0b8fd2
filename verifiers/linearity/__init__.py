"""Local linearity: how far a network is from its linearisation, and what that says about a student."""
