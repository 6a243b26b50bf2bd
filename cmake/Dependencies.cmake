# Finds DALI's header, CUDA's headers (types only: nothing of CUDA is linked), OpenVINO and nlohmann/json.hpp, first in
# DECIPHER_RT_PYTHON_ENV, then on the system.
find_package(Threads REQUIRED)

# What was found in another environment is looked for anew.
if(DEFINED _decipher_rt_env AND NOT _decipher_rt_env STREQUAL DECIPHER_RT_PYTHON_ENV)
  foreach(_found DALI_INCLUDE_DIR CUDA_INCLUDE_DIR NLOHMANN_JSON_INCLUDE_DIR OpenVINO_DIR)
    unset(${_found} CACHE)
  endforeach()
endif()
set(_decipher_rt_env "${DECIPHER_RT_PYTHON_ENV}" CACHE INTERNAL "Environment of what was found")

set(_wheels "")
if(DECIPHER_RT_PYTHON_ENV)
  file(GLOB _wheels LIST_DIRECTORIES true "${DECIPHER_RT_PYTHON_ENV}/lib/python3*/site-packages")
endif()

find_path(DALI_INCLUDE_DIR dali/dali.h HINTS ${_wheels} PATH_SUFFIXES nvidia/dali/include)
if(NOT DALI_INCLUDE_DIR)
  message(FATAL_ERROR "dali/dali.h not found: pip install nvidia-dali-cuda130 into DECIPHER_RT_PYTHON_ENV "
                      "(${DECIPHER_RT_PYTHON_ENV}), or set DALI_INCLUDE_DIR")
endif()
cmake_path(GET DALI_INCLUDE_DIR PARENT_PATH DALI_LIBRARY_DIR)
if(EXISTS "${DALI_LIBRARY_DIR}/lib/libdali.so")  # a prefix, and not a wheel's folder
  cmake_path(APPEND DALI_LIBRARY_DIR lib)
endif()

find_path(CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${_wheels} /usr/local/cuda
          PATH_SUFFIXES triton/backends/nvidia/include nvidia/cu13/include nvidia/cuda_runtime/include include)
if(NOT CUDA_INCLUDE_DIR)
  message(FATAL_ERROR "cuda_runtime_api.h not found (DALI's header needs it): pip install triton into "
                      "DECIPHER_RT_PYTHON_ENV (${DECIPHER_RT_PYTHON_ENV}), or set CUDA_INCLUDE_DIR")
endif()

find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp HINTS ${_wheels} PATH_SUFFIXES nlohmann_json/include)
if(NOT NLOHMANN_JSON_INCLUDE_DIR)
  message(FATAL_ERROR "nlohmann/json.hpp not found: pip install nlohmann-json into DECIPHER_RT_PYTHON_ENV "
                      "(${DECIPHER_RT_PYTHON_ENV}), or apt-get install nlohmann-json3-dev")
endif()

if(DECIPHER_RT_OPENVINO)
  list(TRANSFORM _wheels APPEND "/openvino/cmake" OUTPUT_VARIABLE _openvino)
  # Not the frontends that the wheel exports beside the runtime: those are loaded by OpenVINO itself.
  find_package(OpenVINO REQUIRED COMPONENTS Runtime HINTS ${_openvino})
  get_target_property(OPENVINO_LIBRARY openvino::runtime LOCATION)
  cmake_path(GET OPENVINO_LIBRARY PARENT_PATH OPENVINO_LIBRARY_DIR)
endif()
