// Makes the library a Python module too, by whose import it is loaded. The operators register themselves.
#include "registration.h"  // kernel-builder's

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
