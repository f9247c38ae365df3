"""Compiled graphs behind one interface, on the CPU and on GPUs.

engine.py     the interface: every backend keeps it
buffer.py     memory described by pointer, shape, dtype, device and stream; DLPack in and out
driver.py     what NVIDIA driver and GPUs are there, asked before any other library is touched
gpu.py        one GPU, one stream, memory at fixed addresses
onnx_cpu.py   ONNX Runtime on the CPU
onnx_cuda.py  ONNX Runtime on a GPU, bound to device pointers
"""
