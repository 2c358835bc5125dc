# Target hearth_nccl: header and library of NCCL, from the wheel that LibTorch itself loads (so that a process holds one
# NCCL), else from the CUDA toolkit or the system. Only with HEARTH_CUDA; included by parallel/CMakeLists.txt alone.
set(nccl_wheel "${HEARTH_TORCH_DIR}/../nvidia/nccl")
find_path(NCCL_INCLUDE_DIR nccl.h
  PATHS ${nccl_wheel}/include ${CUDAToolkit_INCLUDE_DIRS} /usr/include NO_DEFAULT_PATH)
find_library(NCCL_LIBRARY NAMES libnccl.so.2 libnccl.so
  PATHS ${nccl_wheel}/lib ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}/lib
  /usr/lib/x86_64-linux-gnu NO_DEFAULT_PATH)
if(NOT NCCL_INCLUDE_DIR OR NOT NCCL_LIBRARY)
  message(FATAL_ERROR "HEARTH_CUDA=ON needs NCCL (nccl.h and libnccl.so.2): looked in ${nccl_wheel} and the CUDA "
    "toolkit. Run launch/setup.sh, or pass -DNCCL_INCLUDE_DIR=... -DNCCL_LIBRARY=...")
endif()
get_filename_component(nccl_library "${NCCL_LIBRARY}" REALPATH)
add_library(hearth_nccl SHARED IMPORTED)
set_target_properties(hearth_nccl PROPERTIES
  IMPORTED_LOCATION "${nccl_library}" IMPORTED_SONAME libnccl.so.2
  INTERFACE_INCLUDE_DIRECTORIES "${NCCL_INCLUDE_DIR}")
