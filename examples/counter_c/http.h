/* A small HTTP/1.1 server: a thread for each connection, keep-alive, and a stop that loses no request. */
#ifndef HTTP_H
#define HTTP_H

#include <stddef.h>

struct request {
    char method[16];
    char path[1024]; /* without the query */
};

struct response {
    int status;
    char body[4096];
};

/* Answers one request; called from many threads at once. */
typedef void (*http_handler)(const struct request *, struct response *);

/*
 * Listens on all addresses and serves until `stop_fd` becomes readable. Then it takes in who is already in
 * the queue, finishes what was begun (for at most eight seconds) and returns 0, or 1 when it could not listen
 * or something had to be cut off.
 */
int http_serve(int port, int stop_fd, http_handler handler);

#endif
