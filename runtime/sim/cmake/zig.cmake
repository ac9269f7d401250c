# Cross toolchain: clang from the ziglang package. -DRKSIM_TARGET=aarch64-linux-gnu.2.28 (a board with glibc 2.28 or
# newer) or x86_64-linux-gnu.2.17; -DRKSIM_PYTHON=python that has ziglang.
set(RKSIM_TARGET "aarch64-linux-gnu.2.28" CACHE STRING "zig target triple with glibc version")
set(RKSIM_PYTHON "python3" CACHE STRING "interpreter with the ziglang package")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES RKSIM_TARGET RKSIM_PYTHON)
set(CMAKE_SYSTEM_NAME Linux)
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR "${RKSIM_TARGET}")
# CMake wants programs, not commands with arguments: one small wrapper each.
set(WRAPPERS ${CMAKE_BINARY_DIR}/zig)
foreach(tool cc c++ ar ranlib)
  file(WRITE ${WRAPPERS}/${tool}
    "#!/bin/sh\nexec ${RKSIM_PYTHON} -m ziglang ${tool} \"$@\"\n")
  file(CHMOD ${WRAPPERS}/${tool} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
endforeach()
set(CMAKE_C_COMPILER ${WRAPPERS}/cc)
set(CMAKE_CXX_COMPILER ${WRAPPERS}/c++)
set(CMAKE_C_COMPILER_TARGET ${RKSIM_TARGET})
set(CMAKE_CXX_COMPILER_TARGET ${RKSIM_TARGET})
set(CMAKE_AR ${WRAPPERS}/ar CACHE FILEPATH "" FORCE)
set(CMAKE_RANLIB ${WRAPPERS}/ranlib CACHE FILEPATH "" FORCE)
set(RKSIM_DOTPROD_FLAG "-mcpu=generic+v8_2a+dotprod" CACHE STRING "")
