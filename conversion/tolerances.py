"""How equal is equal, written once; relative errors are ||ours - theirs|| / ||theirs|| of a whole tensor.

They are the project's promise and are never loosened to make a comparison pass.
"""

# One layer or module given the reference's own input; whole stacks, where errors add up; gradients.
LAYER = {"float32": 1e-5, "float64": 1e-10}
STACK = {"float32": 1e-4, "float64": 1e-10}
GRADIENT = {"float32": 1e-4, "float64": 1e-10}
