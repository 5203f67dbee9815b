/*
 * Two procs of one app: `counter web` counts the requests that it got, `counter worker` prints a line a
 * second, as a worker would that takes jobs from a queue.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "http.h"

static atomic_ulong requests;
static const char *port_text;
static char greeting[256] = "Hello";
static char hostname[256];

/* The settings are YAML; all that we look for is a line `greeting: some text`. */
static void read_settings(void)
{
    const char *path = getenv("APP_SETTINGS_YAML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    if (file == NULL)
        return;
    while (fgets(line, sizeof line, file))
        if (strncmp(line, "greeting: ", 10) == 0)
            snprintf(greeting, sizeof greeting, "%.*s", (int)strcspn(line + 10, "\r\n"), line + 10);
    fclose(file);
}

static void answer(const struct request *request, struct response *response)
{
    if (strcmp(request->path, "/") == 0) {
        unsigned long count = atomic_fetch_add(&requests, 1) + 1;
        snprintf(response->body, sizeof response->body,
                 "%s from counter_c\nversion: " VERSION "\nhost: %s\nport: %s\npid: %d\ncount: %lu\n", greeting,
                 hostname, port_text, (int)getpid(), count);
    } else if (strcmp(request->path, "/healthz") == 0) {
        snprintf(response->body, sizeof response->body, "ok\n");
    } else {
        response->status = 404;
        snprintf(response->body, sizeof response->body, "no such page: try / or /healthz\n");
    }
}

static int work(int stop_fd)
{
    struct pollfd stop = {.fd = stop_fd, .events = POLLIN};
    for (unsigned long n = 1;; n++) {
        printf("counter_c " VERSION " has worked for %lu s\n", n);
        if (poll(&stop, 1, 1000) > 0)
            break;
    }
    printf("counter_c " VERSION " has stopped\n");
    return 0;
}

int main(int argc, char **argv)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    /* Before any thread is made, so that none is interrupted: the signals are read from a descriptor. */
    sigprocmask(SIG_BLOCK, &signals, NULL);
    int stop_fd = signalfd(-1, &signals, SFD_CLOEXEC);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (stop_fd < 0) {
        fprintf(stderr, "cannot wait for signals: %s\n", strerror(errno));
        return 1;
    }
    if (argc == 2 && strcmp(argv[1], "worker") == 0)
        return work(stop_fd);
    if (argc != 2 || strcmp(argv[1], "web") != 0) {
        fprintf(stderr, "usage: %s web|worker\n", argv[0]);
        return 2;
    }

    port_text = getenv("PORT");
    int port = port_text ? atoi(port_text) : 0;
    if (port < 1 || port > 65535) {
        fprintf(stderr, "PORT must be set to a port\n");
        return 2;
    }
    gethostname(hostname, sizeof hostname - 1);
    read_settings();
    printf("counter_c " VERSION " listens on port %d\n", port);
    int status = http_serve(port, stop_fd, answer);
    printf("counter_c " VERSION " has stopped after %lu requests\n", atomic_load(&requests));
    return status;
}
