#include "shared_library.hpp"

#include <dlfcn.h>

#include "error.hpp"

namespace decipher {

static std::string path_of(const std::string& folder, const std::string& name) { return folder.empty() ? name : folder + "/" + name; }

SharedLibrary SharedLibrary::load(const std::string& folder, const std::string& name, const std::string& advice) {
    SharedLibrary library;
    library.name_ = name;
    // Functions are looked for when they are first called: of the thousands that DALI's libraries want, few ever are.
    library.handle_ = dlopen(path_of(folder, name).c_str(), RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
    if (library.handle_ == nullptr) {
        const char* reason = dlerror();
        throw engine_error(name + " does not load (" + one_line(reason != nullptr ? reason : "no reason given") + "): " + advice);
    }
    return library;
}

bool SharedLibrary::is_loaded(const std::string& folder, const std::string& name) {
    return dlopen(path_of(folder, name).c_str(), RTLD_LAZY | RTLD_NOLOAD) != nullptr;
}

void* SharedLibrary::symbol(const char* name) const {
    void* address = dlsym(handle_, name);
    if (address == nullptr) throw engine_error(name_ + " has no " + name + ": it is of another version");
    return address;
}

}  // namespace decipher
