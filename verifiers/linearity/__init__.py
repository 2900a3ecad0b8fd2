"""Local linearity: bound a network's distance from its linearisation, and transfer certificates to a student."""
