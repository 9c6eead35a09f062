"""The recurrent core in C++: found, loaded and called by pointers, without any ABI of torch or Python.

The kernels are a plain shared library. Where no C++ compiler was at hand when the package was installed there is
none, and the portable path in torch computes the same.
"""
