/* arc4random_buf() came with glibc 2.36; Debian's expat is the only library in the build that asks for it, for the seed of its hash tables. */
#include <stddef.h>
#include <stdlib.h>
#include <sys/random.h>
void __wrap_arc4random_buf(void *buffer, size_t length)
{
    char *at = buffer;
    while (length > 0) {
        ssize_t got = getrandom(at, length < 256 ? length : 256, 0);
        if (got < 0)
            abort();
        at += got;
        length -= (size_t)got;
    }
}
