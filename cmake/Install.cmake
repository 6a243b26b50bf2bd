# Header, library, worker, CMake package (find_package(decipher_rt)) and pkg-config.
include(CMakePackageConfigHelpers)

install(TARGETS decipher_rt EXPORT decipher_rtTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT Runtime NAMELINK_COMPONENT Development)
install(TARGETS decipher_rt_worker RUNTIME DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/decipher_rt COMPONENT Runtime)
install(FILES decipher_rt/native/include/decipher_rt.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT Development)
install(EXPORT decipher_rtTargets NAMESPACE decipher_rt::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/decipher_rt COMPONENT Development)
configure_package_config_file(cmake/decipher_rtConfig.cmake.in decipher_rtConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/decipher_rt)
write_basic_package_version_file(decipher_rtConfigVersion.cmake COMPATIBILITY SameMinorVersion)
# Relative, so that the folder can be moved; libdir may have any depth.
set(_pc "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig")
file(RELATIVE_PATH DECIPHER_RT_PREFIX_FROM_PC "${_pc}" "${CMAKE_INSTALL_PREFIX}")
file(RELATIVE_PATH DECIPHER_RT_INCLUDE_FROM_PC "${_pc}" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
configure_file(cmake/decipher_rt.pc.in decipher_rt.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/decipher_rtConfig.cmake ${PROJECT_BINARY_DIR}/decipher_rtConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/decipher_rt COMPONENT Development)
install(FILES ${PROJECT_BINARY_DIR}/decipher_rt.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT Development)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/decipher_rt COMPONENT Runtime)
