#include "proc.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "jobs.h"

/* Unclaimed output of ended processes may not eat the guest: so many bytes, then oldest out. */
#define MAX_ENDED_BYTES (16U << 20)

static struct proc *procs; /* newest first */
static uint64_t ended_orders;
static bool maybe_ending;

static const struct stream_ops proc_ops;

struct proc *proc_find(const char *name)
{
    for (struct proc *p = procs; p; p = p->next)
        if (strcmp(p->name, name) == 0)
            return p;
    return NULL;
}

static void release(struct proc *p)
{
    for (int i = 0; i < 2; i++) {
        source_close(&p->out[i].src);
        ring_free(&p->out[i].ring);
    }
    source_close(&p->in.src);
    ring_free(&p->in.ring);
    loop_free_later(p);
}

void proc_list(struct proc *p)
{
    p->next = procs;
    procs = p;
}

void proc_discard(struct proc *p) { release(p); }

static void forget(struct proc *p)
{
    for (struct proc **at = &procs; *at; at = &(*at)->next) {
        if (*at != p)
            continue;
        *at = p->next;
        break;
    }
    release(p);
}

/* Ended ones that nobody claims: keep the newest. */
static void evict(void)
{
    for (;;) {
        struct proc *oldest = NULL;
        size_t count = 0, bytes = 0;
        for (struct proc *p = procs; p; p = p->next) {
            if (!p->ended || p->stream)
                continue;
            count++;
            bytes += p->out[0].ring.len + p->out[1].ring.len;
            if (!oldest || p->ended_order < oldest->ended_order)
                oldest = p;
        }
        if (count <= MAX_ENDED && bytes <= MAX_ENDED_BYTES)
            return;
        forget(oldest);
    }
}

/* It has ended and nobody is attached: keep its last output only, for whoever may ask. */
static void abandoned(struct proc *p)
{
    ring_trim(&p->out[0].ring);
    ring_trim(&p->out[1].ring);
    evict();
}

/* Output: from the process into the ring, from the ring to the stream */

static void output_over(struct output *o)
{
    source_close(&o->src);
    o->readable = false;
    if (!o->proc->ended)
        maybe_ending = true;
}

/*
 * Nobody has the terminal open, but its session leader lives: it may open it again, and would get
 * SIGHUP from our closing it. Only its end is the end.
 */
static void pty_unused(struct output *o)
{
    o->readable = false;
    maybe_ending = true;
}

static void output_fill(struct output *o)
{
    while (o->readable && o->src.fd >= 0) {
        size_t room;
        uint8_t *at = ring_space(&o->ring, &room);
        if (!room)
            return;
        ssize_t n = read(o->src.fd, at, room);
        if (n > 0)
            ring_added(&o->ring, (size_t)n);
        else if (n < 0 && (errno == EAGAIN || errno == EINTR))
            o->readable = errno == EINTR;
        else if (o->proc->pty && !o->proc->ended)
            pty_unused(o);
        else /* end of file; EIO is how a pty says it */
            output_over(o);
    }
}

static void input_drain(struct input *in);

static void on_output(struct source *src, uint32_t events)
{
    struct output *o = (struct output *)src;
    struct proc *p = o->proc;
    if (events & ~(uint32_t)EPOLLOUT) {
        o->readable = true;
        output_fill(o);
    }
    if (p->pty && (events & EPOLLOUT)) {
        p->in.writable = true;
        input_drain(&p->in);
    }
    if (p->stream)
        stream_dirty(p->stream);
}

static bool output_pump(struct output *o, struct stream *s, uint8_t channel)
{
    size_t stored = o->ring.len - (size_t)(o->sent - o->base);
    size_t room = stream_room(s, channel);
    if (stored && room) {
        size_t piece;
        const uint8_t *at = ring_peek(&o->ring, (size_t)(o->sent - o->base), &piece);
        if (piece > room)
            piece = room;
        stream_data(s, channel, at, piece);
        o->sent += piece;
        stored -= piece;
    }
    if (!stored && o->src.fd < 0 && !o->eof_sent) {
        o->eof_sent = true;
        stream_eof(s, channel);
    }
    return stored && s->unacked[channel] < WINDOW;
}

static void say_exit(struct proc *p)
{
    struct tlv_out *t = stream_tlv();
    bool killed = WIFSIGNALED(p->status);
    tlv_u64(t, TAG_EXIT_CODE, killed ? 0 : (uint64_t)WEXITSTATUS(p->status));
    tlv_u64(t, TAG_TERM_SIGNAL, killed ? (uint64_t)WTERMSIG(p->status) : 0);
    if (p->timed_out)
        tlv_u64(t, TAG_FLAGS, 1);
    stream_event(p->stream, t);
    stream_close(p->stream, 0);
}

static bool proc_pump(struct stream *s)
{
    struct proc *p = s->state;
    bool more = output_pump(&p->out[0], s, 1);
    more |= output_pump(&p->out[1], s, 2);
    if (p->ended && p->out[0].eof_sent && p->out[1].eof_sent)
        say_exit(p);
    return more;
}

static void proc_credit(struct stream *s, uint8_t channel, uint32_t bytes)
{
    struct proc *p = s->state;
    struct output *o = &p->out[channel - 1]; /* only channels we sent on can be credited */
    ring_drop(&o->ring, bytes);
    o->base += bytes;
    output_fill(o);
}

/* Input: from the stream to the process */

static void input_over(struct input *in)
{
    in->open = false;
    source_close(&in->src);
    ring_free(&in->ring);
}

/* Write to the process; 0 when it takes nothing now. A process that reads no more swallows all. */
static size_t input_write(struct input *in, const uint8_t *bytes, size_t len)
{
    size_t done = 0;
    int fd = in->proc->pty ? in->proc->out[0].src.fd : in->src.fd;
    while (in->open && in->writable && done < len) {
        ssize_t n = write(fd, bytes + done, len - done);
        if (n > 0)
            done += (size_t)n;
        else if (n < 0 && errno == EAGAIN)
            in->writable = false;
        else if (n < 0 && errno != EINTR)
            input_over(in);
    }
    if (!in->open)
        done = len;
    in->passed += done;
    if (done && in->proc->stream)
        stream_passed(in->proc->stream, 0, done);
    if (!in->writable && in->open && !in->watched && !in->proc->pty) {
        in->watched = true;
        loop_add(&in->src, EPOLLOUT);
    }
    return done;
}

static void input_drain(struct input *in)
{
    while (in->ring.len) {
        size_t piece;
        const uint8_t *at = ring_peek(&in->ring, 0, &piece);
        size_t done = input_write(in, at, piece);
        if (!in->ring.len || !done)
            break;
        ring_drop(&in->ring, done);
    }
    if (in->eof_wanted && in->open && !in->ring.len) {
        static const uint8_t end_of_transmission = 4;
        if (in->proc->pty && write(in->proc->out[0].src.fd, &end_of_transmission, 1) < 0)
            in->eof_wanted = true; /* the process is gone: nobody to tell */
        input_over(in);
    }
}

static void on_input(struct source *src, uint32_t events)
{
    struct input *in = (struct input *)src;
    (void)events;
    in->writable = true;
    input_drain(in);
}

static void proc_data(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t len)
{
    struct proc *p = s->state;
    size_t done = 0;
    if (channel != 0) {
        stream_passed(s, channel, len);
        return;
    }
    if (!p->in.ring.len)
        done = input_write(&p->in, bytes, len);
    if (done < len && !ring_put(&p->in.ring, bytes + done, len - done))
        input_over(&p->in); /* no memory: the process sees the end of its input */
}

static void proc_eof(struct stream *s, uint8_t channel)
{
    struct proc *p = s->state;
    if (channel != 0)
        return;
    p->in.eof_wanted = true;
    input_drain(&p->in);
}

/* Life */

struct proc *proc_new(const char *name)
{
    struct proc *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    for (int i = 0; i < 2; i++) {
        p->out[i].src = (struct source){-1, on_output};
        p->out[i].proc = p;
    }
    p->in.src = (struct source){-1, on_input};
    p->in.proc = p;
    p->in.writable = true;
    strcpy(p->name, name);
    return p;
}

void proc_attach(struct proc *p, struct stream *s)
{
    p->stream = s;
    s->ops = &proc_ops;
    s->state = p;
    for (int i = 0; i < 2; i++) {
        p->out[i].sent = p->out[i].base;
        p->out[i].eof_sent = false;
        output_fill(&p->out[i]);
    }
    stream_dirty(s);
}

static void signal_group(const struct proc *p, int sig)
{
    if (!p->ended)
        kill(-p->pid, sig);
}

static void proc_event(struct stream *s, const struct msg *m)
{
    struct proc *p = s->state;
    uint64_t sig = msg_u64(m, TAG_SIGNAL, 0);
    if (sig && sig <= 64)
        signal_group(p, (int)sig);
    if (p->pty && p->out[0].src.fd >= 0 && msg_find(m, TAG_ROWS) && msg_find(m, TAG_COLS)) {
        struct winsize size = {.ws_row = (uint16_t)msg_u64(m, TAG_ROWS, 0),
                               .ws_col = (uint16_t)msg_u64(m, TAG_COLS, 0)};
        ioctl(p->out[0].src.fd, TIOCSWINSZ, &size);
    }
}

static void proc_gone(struct stream *s, const struct msg *m)
{
    struct proc *p = s->state;
    p->stream = NULL;
    /* Input that the process hasn't taken is sent again by whoever attaches: STDIN_SEEN tells. */
    ring_free(&p->in.ring);
    p->in.eof_wanted = false;
    if (m && p->ended && p->out[0].src.fd < 0 && p->out[1].src.fd < 0) {
        forget(p);
        return;
    }
    if (m && msg_u64(m, TAG_FLAGS, 0) & 1)
        signal_group(p, SIGKILL);
    if (p->ended)
        abandoned(p);
}

static const struct stream_ops proc_ops = {.data = proc_data, .eof = proc_eof,
    .event = proc_event, .credit = proc_credit, .pump = proc_pump, .gone = proc_gone};

static void ended(struct proc *p, int status)
{
    p->ended = true;
    p->status = status;
    p->ended_order = ++ended_orders;
    if (p->pty) {
        p->out[0].readable = true;
        output_fill(&p->out[0]);
    }
    if (p->stream)
        stream_dirty(p->stream);
    else
        abandoned(p);
}

void procs_reap(void)
{
    maybe_ending = false;
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid < 0 && errno == ECHILD)
            shutdown_no_children();
        if (pid <= 0)
            return;
        if (job_ended(pid, status))
            continue;
        for (struct proc *p = procs; p; p = p->next) {
            if (p->pid != pid || p->ended)
                continue;
            ended(p, status);
            break;
        }
    }
}

bool procs_about_to_end(void) { return maybe_ending; }

uint64_t procs_deadline(void)
{
    uint64_t nearest = 0;
    for (struct proc *p = procs; p; p = p->next)
        if (p->deadline && (!nearest || p->deadline < nearest))
            nearest = p->deadline;
    return nearest;
}

void procs_expire(uint64_t now)
{
    for (struct proc *p = procs; p; p = p->next) {
        bool over = p->ended && p->out[0].src.fd < 0 && p->out[1].src.fd < 0;
        if (over)
            p->deadline = 0;
        if (!p->deadline || p->deadline > now)
            continue;
        p->deadline = 0;
        p->timed_out = true;
        kill(-p->pid, SIGKILL);
        if (!p->ended)
            continue;
        /* The leader has gone; somebody who left its group holds the outputs. */
        for (int i = 0; i < 2; i++)
            output_over(&p->out[i]);
        if (p->stream)
            stream_dirty(p->stream);
    }
}

void procs_signal(int sig)
{
    for (struct proc *p = procs; p; p = p->next)
        signal_group(p, sig);
}

/* Services */

static bool advance(struct output *o, uint64_t seen)
{
    if (seen < o->base || seen > o->base + o->ring.len)
        return false;
    ring_drop(&o->ring, (size_t)(seen - o->base));
    o->base = seen;
    return true;
}

void svc_attach(struct stream *s, const struct msg *m)
{
    const char *name = msg_str(m, TAG_PROC);
    struct proc *p = name ? proc_find(name) : NULL;
    if (!p) {
        stream_fail(s, ESRCH, "no such process", name);
        return;
    }
    if (p->stream) {
        stream_fail(s, EBUSY, "somebody else is attached", name);
        return;
    }
    if (!advance(&p->out[0], msg_u64(m, TAG_STDOUT_SEEN, p->out[0].base)) ||
        !advance(&p->out[1], msg_u64(m, TAG_STDERR_SEEN, p->out[1].base))) {
        stream_fail(s, ERANGE, "the output can't go on from there", name);
        return;
    }
    struct tlv_out *t = stream_tlv();
    tlv_u64(t, TAG_PID, (uint64_t)p->pid);
    tlv_u64(t, TAG_STDIN_SEEN, p->in.passed);
    stream_reply(s, t);
    proc_attach(p, s);
}

void svc_procs(struct stream *s, const struct msg *m)
{
    struct tlv_out *t = stream_tlv();
    (void)m;
    t->cap -= 2 * (TLV_HEAD + 8); /* for ERRNO */
    for (struct proc *p = procs; p && !t->full; p = p->next) {
        size_t mark = tlv_begin(t, TAG_ENTRY);
        tlv_str(t, TAG_PROC, p->name);
        tlv_u64(t, TAG_PID, (uint64_t)p->pid);
        tlv_u64(t, TAG_FLAGS, p->ended ? 1 : 0);
        if (p->ended) {
            bool killed = WIFSIGNALED(p->status);
            tlv_u64(t, TAG_EXIT_CODE, killed ? 0 : (uint64_t)WEXITSTATUS(p->status));
            tlv_u64(t, TAG_TERM_SIGNAL, killed ? (uint64_t)WTERMSIG(p->status) : 0);
        }
        tlv_end(t, mark);
    }
    t->full = false;
    stream_done(s, t);
}

void svc_kill(struct stream *s, const struct msg *m)
{
    const char *name = msg_str(m, TAG_PROC);
    uint64_t sig = msg_u64(m, TAG_SIGNAL, SIGTERM);
    struct proc *p = name ? proc_find(name) : NULL;
    if (!p || p->ended)
        stream_fail(s, ESRCH, "no such running process", name);
    else if (sig > 64)
        stream_fail(s, EINVAL, "no such signal", NULL);
    else if (kill(-p->pid, (int)sig) < 0)
        stream_fail(s, errno, "kill", name);
    else
        stream_done(s, stream_tlv());
}
