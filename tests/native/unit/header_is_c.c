/* The header alone, first, in strict C99. */
#include <decipher_rt.h>

int main(void) { return drt_abi_version() == DRT_ABI_VERSION ? 0 : 1; }
