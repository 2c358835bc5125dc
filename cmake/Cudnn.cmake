# Target hearth_cudnn: headers of cuDNN and of cudnn-frontend (its C++ interface, headers only), and the cuDNN library, from
# the wheels beside LibTorch (so that a process holds one cuDNN), else from the system. Only with HEARTH_CUDA; included by
# kernels/CMakeLists.txt alone.
set(cudnn_wheel "${HEARTH_TORCH_DIR}/../nvidia/cudnn")
find_path(CUDNN_INCLUDE_DIR cudnn.h
  PATHS ${cudnn_wheel}/include ${CUDAToolkit_INCLUDE_DIRS} /usr/include /usr/include/x86_64-linux-gnu NO_DEFAULT_PATH)
find_library(CUDNN_LIBRARY NAMES libcudnn.so.9
  PATHS ${cudnn_wheel}/lib ${CUDAToolkit_LIBRARY_DIR} /usr/lib/x86_64-linux-gnu NO_DEFAULT_PATH)
find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h
  PATHS ${HEARTH_TORCH_DIR}/../include /usr/include /usr/local/include NO_DEFAULT_PATH)
if(NOT CUDNN_INCLUDE_DIR OR NOT CUDNN_LIBRARY OR NOT CUDNN_FRONTEND_INCLUDE_DIR)
  message(FATAL_ERROR "HEARTH_CUDA=ON needs cuDNN 9 (cudnn.h and libcudnn.so.9; looked in ${cudnn_wheel}) and cudnn-frontend "
    "(cudnn_frontend.h; looked in ${HEARTH_TORCH_DIR}/../include). Run launch/setup.sh, or pass -DCUDNN_INCLUDE_DIR=... "
    "-DCUDNN_LIBRARY=... -DCUDNN_FRONTEND_INCLUDE_DIR=...")
endif()
get_filename_component(cudnn_library "${CUDNN_LIBRARY}" REALPATH)
add_library(hearth_cudnn SHARED IMPORTED)
set_target_properties(hearth_cudnn PROPERTIES
  IMPORTED_LOCATION "${cudnn_library}" IMPORTED_SONAME libcudnn.so.9
  INTERFACE_INCLUDE_DIRECTORIES "${CUDNN_INCLUDE_DIR};${CUDNN_FRONTEND_INCLUDE_DIR}"
  # Without the headers' JSON reader and writer, and so without its copy of nlohmann's library beside ours.
  INTERFACE_COMPILE_DEFINITIONS CUDNN_FRONTEND_SKIP_JSON_LIB)
