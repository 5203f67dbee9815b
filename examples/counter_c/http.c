#include "http.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_HEAD = 16 * 1024,
    MAX_BODY = 1024 * 1024,
    MAX_CONNECTIONS = 512,
    IDLE_MS = 75 * 1000,
    REQUEST_MS = 30 * 1000,
    LINGER_MS = 200, /* how long an idle connection may still bring a request once we are stopping */
    STOP_MS = 8 * 1000,
};

static http_handler handle;
static int stopping_fd;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t one_less = PTHREAD_COND_INITIALIZER;
static int open_connections;

struct connection {
    int fd;
    size_t used; /* bytes of `in` that hold something */
    char in[MAX_HEAD + 1];
};

static int is_stopping(void)
{
    struct pollfd stop = {.fd = stopping_fd, .events = POLLIN};
    return poll(&stop, 1, 0) > 0;
}

/* Reads more into the buffer. 1: there is more; 0: the peer ended, was too slow, or the buffer is full. */
static int read_more(struct connection *c, int wait_ms)
{
    if (c->used >= MAX_HEAD)
        return 0;
    struct pollfd readable = {.fd = c->fd, .events = POLLIN};
    if (poll(&readable, 1, wait_ms) <= 0)
        return 0;
    ssize_t got = read(c->fd, c->in + c->used, MAX_HEAD - c->used);
    if (got <= 0)
        return 0;
    c->used += (size_t)got;
    c->in[c->used] = '\0';
    return 1;
}

/* Waits for the first byte of a request; the end of an idle connection, or of the server, is the end. */
static int wait_for_request(struct connection *c)
{
    if (c->used > 0)
        return 1;
    struct pollfd fds[2] = {{.fd = c->fd, .events = POLLIN}, {.fd = stopping_fd, .events = POLLIN}};
    if (poll(fds, 2, IDLE_MS) <= 0)
        return 0;
    if (fds[0].revents == 0) {
        /* A request may be on its way over this connection right now. */
        return read_more(c, LINGER_MS);
    }
    return read_more(c, 0);
}

static void consume(struct connection *c, size_t count)
{
    memmove(c->in, c->in + count, c->used - count);
    c->used -= count;
    c->in[c->used] = '\0';
}

static int send_all(int fd, const char *data, size_t left)
{
    while (left > 0) {
        ssize_t sent = send(fd, data, left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return 0;
        data += sent;
        left -= (size_t)sent;
    }
    return 1;
}

static const char *reason(int status)
{
    switch (status) {
    case 200: return "OK";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 411: return "Length Required";
    case 413: return "Content Too Large";
    case 503: return "Service Unavailable";
    default: return "Bad Request";
    }
}

static int respond(struct connection *c, const struct response *r, int head_only, int keep)
{
    char all[sizeof r->body + 512];
    size_t body = strlen(r->body);
    int head = snprintf(all, sizeof all,
                        "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %zu\r\n"
                        "X-App-Version: " VERSION "\r\nConnection: %s\r\n\r\n%s",
                        r->status, reason(r->status), body, keep ? "keep-alive" : "close", r->body);
    return send_all(c->fd, all, head_only ? (size_t)head - body : (size_t)head);
}

static void refuse(struct connection *c, int status, const char *why)
{
    struct response r = {.status = status};
    snprintf(r.body, sizeof r.body, "%s\n", why);
    respond(c, &r, 0, 0);
}

/* Reads and answers one request. 1: the connection goes on. */
static int serve_request(struct connection *c)
{
    char *end;
    if (!wait_for_request(c))
        return 0;
    while ((end = strstr(c->in, "\r\n\r\n")) == NULL) {
        if (!read_more(c, REQUEST_MS)) {
            if (c->used >= MAX_HEAD)
                refuse(c, 400, "the head is too long");
            return 0;
        }
    }
    *end = '\0';

    struct request request = {0};
    char target[1024];
    int minor = 0, parsed = 0;
    char *save = NULL;
    char *line = strtok_r(c->in, "\r\n", &save);
    if (line == NULL || sscanf(line, "%15[A-Z] %1023s HTTP/1.%1d%n", request.method, target, &minor, &parsed) != 3
        || line[parsed] != '\0') {
        refuse(c, 400, "not an HTTP/1.1 request");
        return 0;
    }
    snprintf(request.path, sizeof request.path, "%.*s", (int)strcspn(target, "?"), target);

    int keep = minor >= 1, hosts = 0, lengths = 0, expects = 0;
    unsigned long length = 0;
    while ((line = strtok_r(NULL, "\r\n", &save)) != NULL) {
        char *value = strchr(line, ':');
        /* No space may be in, before or after a header's name. */
        if (value == NULL || value == line || strcspn(line, " \t") < (size_t)(value - line)) {
            refuse(c, 400, "a broken header");
            return 0;
        }
        *value++ = '\0';
        value += strspn(value, " \t");
        if (strcasecmp(line, "Host") == 0) {
            hosts++;
        } else if (strcasecmp(line, "Connection") == 0) {
            if (strcasestr(value, "close"))
                keep = 0;
            else if (strcasestr(value, "keep-alive"))
                keep = 1;
        } else if (strcasecmp(line, "Expect") == 0) {
            expects = strcasecmp(value, "100-continue") == 0;
        } else if (strcasecmp(line, "Content-Length") == 0) {
            char *rest;
            length = strtoul(value, &rest, 10);
            if (lengths++ || strspn(value, "0123456789") != strlen(value) || rest == value) {
                refuse(c, 400, "a broken length");
                return 0;
            }
        } else if (strcasecmp(line, "Transfer-Encoding") == 0) {
            refuse(c, 411, "say how long the body is");
            return 0;
        }
    }
    if (hosts > 1 || (minor >= 1 && hosts == 0)) {
        refuse(c, 400, "needs one Host");
        return 0;
    }
    if (length > MAX_BODY) {
        refuse(c, 413, "the body is too long");
        return 0;
    }
    consume(c, (size_t)(end + 4 - c->in));

    /* The body means nothing to us, but the next request begins after it. */
    if (expects && length > c->used && !send_all(c->fd, "HTTP/1.1 100 Continue\r\n\r\n", 25))
        return 0;
    while (length > 0) {
        size_t part = c->used < length ? c->used : length;
        consume(c, part);
        length -= part;
        if (length > 0 && !read_more(c, REQUEST_MS))
            return 0;
    }

    struct response response = {.status = 200};
    int head_only = strcmp(request.method, "HEAD") == 0;
    if (!head_only && strcmp(request.method, "GET") != 0) {
        response.status = 405;
        snprintf(response.body, sizeof response.body, "only GET and HEAD\n");
    } else {
        handle(&request, &response);
    }
    keep = keep && !is_stopping();
    return respond(c, &response, head_only, keep) && keep;
}

static void *serve_connection(void *argument)
{
    struct connection *c = argument;
    while (serve_request(c))
        ;
    close(c->fd);
    free(c);
    pthread_mutex_lock(&lock);
    open_connections--;
    pthread_cond_signal(&one_less);
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void start_connection(int fd)
{
    static const int yes = 1;
    struct timeval limit = {.tv_sec = 30};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    struct connection *c = calloc(1, sizeof *c);
    pthread_t thread;
    if (c == NULL) {
        close(fd);
        return;
    }
    c->fd = fd;
    pthread_mutex_lock(&lock);
    open_connections++;
    pthread_mutex_unlock(&lock);
    if (pthread_create(&thread, NULL, serve_connection, c) != 0) {
        close(fd);
        free(c);
        pthread_mutex_lock(&lock);
        open_connections--;
        pthread_mutex_unlock(&lock);
        return;
    }
    pthread_detach(thread);
}

int http_serve(int port, int stop_fd, http_handler handler)
{
    handle = handler;
    stopping_fd = stop_fd;
    static const int yes = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0
        || listen(listener, SOMAXCONN) < 0) {
        fprintf(stderr, "cannot listen on port %d: %s\n", port, strerror(errno));
        return 1;
    }
    for (;;) {
        pthread_mutex_lock(&lock);
        int full = open_connections >= MAX_CONNECTIONS;
        if (full) /* Whoever comes now waits in the kernel's queue. */
            pthread_cond_wait(&one_less, &lock);
        pthread_mutex_unlock(&lock);
        struct pollfd fds[2] = {{.fd = listener, .events = POLLIN}, {.fd = stop_fd, .events = POLLIN}};
        if (full || poll(fds, 2, -1) < 0)
            continue;
        int fd;
        if (fds[1].revents) {
            while ((fd = accept(listener, NULL, NULL)) >= 0)
                start_connection(fd);
            break;
        }
        if ((fd = accept(listener, NULL, NULL)) >= 0)
            start_connection(fd);
    }
    close(listener);

    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += STOP_MS / 1000;
    pthread_mutex_lock(&lock);
    int late = 0;
    while (open_connections > 0 && !late)
        late = pthread_cond_timedwait(&one_less, &lock, &deadline) == ETIMEDOUT;
    pthread_mutex_unlock(&lock);
    return late;
}
