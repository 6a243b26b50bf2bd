# What every target of ours is compiled with.
add_library(decipher_rt_options INTERFACE)
target_compile_features(decipher_rt_options INTERFACE cxx_std_20 c_std_99)
target_compile_options(decipher_rt_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Wold-style-cast -Woverloaded-virtual>
  $<$<BOOL:${DECIPHER_RT_WERROR}>:-Werror>
  # GCC 12 sees an overlap in std::string's operator+ that cannot be (GCC bug 105651).
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
  # Answers must not depend on whether the compiler fuses a multiplication with an addition.
  -ffp-contract=off)
if(DECIPHER_RT_SANITIZE)
  target_compile_options(decipher_rt_options INTERFACE
    -fsanitize=${DECIPHER_RT_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(decipher_rt_options INTERFACE -fsanitize=${DECIPHER_RT_SANITIZE})
endif()
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
