// What core/ needs from the compiler to serve g++, nvcc and the host simulator alike.
#pragma once

#if defined(__CUDACC__)
#define DADL_HD __host__ __device__ __forceinline__
#else
#define DADL_HD inline
#endif
