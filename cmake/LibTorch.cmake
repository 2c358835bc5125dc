# Target hearth_torch: LibTorch from the torch wheel, without the wheel's own CMake package, which needs a CUDA
# toolkit even for a CPU-only build. The wheel's RUNPATH finds the sibling nvidia/ folders.
if(NOT EXISTS "${HEARTH_TORCH_DIR}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch not found: HEARTH_TORCH_DIR='${HEARTH_TORCH_DIR}' has no lib/libtorch_cpu.so. "
    "Run launch/setup.sh, or pass -DHEARTH_TORCH_DIR=<site-packages>/torch")
endif()
add_library(hearth_torch INTERFACE)
# The wheel ships the headers of its own fmt, without the library. A folder with nothing but the system's fmt comes
# first, so that every file of ours uses the one that is linked.
get_target_property(fmt_include fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
list(GET fmt_include 0 fmt_include)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/system_include)
file(CREATE_LINK ${fmt_include}/fmt ${CMAKE_BINARY_DIR}/system_include/fmt SYMBOLIC)
target_include_directories(hearth_torch SYSTEM INTERFACE
  ${CMAKE_BINARY_DIR}/system_include
  ${HEARTH_TORCH_DIR}/include ${HEARTH_TORCH_DIR}/include/torch/csrc/api/include)
set(nvidia_dir "${HEARTH_TORCH_DIR}/../nvidia")
target_link_directories(hearth_torch INTERFACE ${HEARTH_TORCH_DIR}/lib)
target_link_options(hearth_torch INTERFACE
  # The wheel's libraries export parts of std::filesystem from an older libstdc++ (some jump to null, such as
  # remove_all). The loader takes the first definition, so the system's libstdc++ must come before them.
  "SHELL:-Wl,--no-as-needed -lstdc++ -Wl,--as-needed"
  "LINKER:-rpath,${HEARTH_TORCH_DIR}/lib"
  # libtorch needs its siblings only at run time, where its own RUNPATH finds them.
  "LINKER:--unresolved-symbols=ignore-in-shared-libs")
foreach(dir cu13 cudnn nccl cusparselt nvshmem)
  if(EXISTS "${nvidia_dir}/${dir}/lib")
    get_filename_component(full "${nvidia_dir}/${dir}/lib" ABSOLUTE)
    target_link_options(hearth_torch INTERFACE "LINKER:-rpath,${full}" "LINKER:-rpath-link,${full}")
  endif()
endforeach()
target_link_libraries(hearth_torch INTERFACE torch_cpu c10)
if(HEARTH_CUDA AND EXISTS "${HEARTH_TORCH_DIR}/lib/libtorch_cuda.so")
  # --no-as-needed: nothing of ours names a symbol of libtorch_cuda, but loading it registers the CUDA backend.
  target_link_options(hearth_torch INTERFACE "SHELL:-Wl,--no-as-needed -ltorch_cuda -lc10_cuda -ltorch -Wl,--as-needed")
  target_link_libraries(hearth_torch INTERFACE CUDA::cudart)
endif()
