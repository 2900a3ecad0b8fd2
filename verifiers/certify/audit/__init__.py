"""The parts of an audit: what a certificate file says is checked by means that did not write it."""
