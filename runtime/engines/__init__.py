"""Compiled graphs behind one interface, on the CPU and on GPUs.

engine.py     the interface: every backend keeps it
buffer.py     memory described by pointer, shape, dtype, device and stream; DLPack in and out
driver.py     what NVIDIA driver and GPUs are there, asked before any other library is touched
gpu.py        one GPU, one stream, memory at fixed addresses
onnx_cpu.py   ONNX Runtime on the CPU
onnx_cuda.py, onnx_cuda_session.py
              ONNX Runtime on a GPU, bound to device pointers
cuda_packages.py, cuda_needs.py
              CUDA's libraries in pip's packages, and which CUDA a library was linked with

fingerprint.py, engine_record.py, engine_cache.py
              what an engine was made from and for; which engine may run here, and why not
tensorrt_library.py, plan_builder.py, native_engine.py, layers.py, scratch.py
              what TensorRT 10, TensorRT 11 and TensorRT-RTX share
rtx.py, rtx_builder.py, tensorrt.py, tensorrt_builder.py
              what each does by itself
graph_file.py what an ONNX file says about itself, read without the onnx package
"""
