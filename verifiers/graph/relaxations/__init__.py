"""Linear relaxations of nonlinear operators, one file per family."""
