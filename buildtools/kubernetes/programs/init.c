/* Process 1 of a node and of the sandbox of a pod: runs a command if one is given, and reaps whatever dies.
   SIGTERM ends it, and with it everything in its pid namespace. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) { _exit(signal == SIGTERM ? 0 : 1); }

int main(int count, char **words) {
    signal(SIGTERM, end);
    signal(SIGINT, end);
    if (count > 1 && fork() == 0) {
        execvp(words[1], words + 1);
        _exit(127);
    }
    for (;;)
        if (wait(0) < 0) pause();
}
