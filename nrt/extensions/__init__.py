"""What a user adds at run time, as data: the registry, traced functions, the source of kernels.

============= ============================================================================
registry      `registry`: ops, pointwise functions and kernel variants by name
ops           checks and registers an `nrt.ir.op.Op` of the user's
trace         a Python function of numbers to a pointwise program
pointwise     `PointwiseFunction`: a traced function with a name and attributes
user_code     finds a user's function again in another process
============= ============================================================================

The calls that users make are in `nrt.extend`.
"""
