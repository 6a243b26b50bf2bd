/* decipher_rt.h: run a 3D MR foundation model inside your own process, from C99 or C++, without Python.

   A volume that is already in memory:

       #include <decipher_rt.h>

       drt_session *session = NULL;
       drt_session_params params;
       drt_session_default_params(&params, sizeof params);
       params.threads = 2;
       if (drt_session_open("bundle", &params, &session) != DRT_OK) {
           fprintf(stderr, "%s\n", drt_last_error());
           return 1;
       }
       drt_session_warm_up(session);

       drt_volume volume;
       drt_default_volume(&volume, sizeof volume);
       volume.voxels = voxels;                    // int16_t voxels[170 * 256 * 256]
       volume.type = DRT_INT16;
       volume.shape[0] = 170; volume.shape[1] = 256; volume.shape[2] = 256;
       memcpy(volume.affine_lps_mm, affine, sizeof volume.affine_lps_mm);  // double affine[16], row-major
       if (drt_session_run(session, &volume) != DRT_OK) {
           fprintf(stderr, "%s\n", drt_last_error());
           return 1;
       }

       size_t size = 0;
       drt_embedding(session, NULL, 0, &size);    // how many floats
       float *embedding = malloc(size * sizeof *embedding);
       drt_embedding(session, embedding, size, &size);

       float probabilities[8];
       if (drt_head_values(session, "sequence", probabilities, 8, &size) == DRT_OK)
           for (size_t i = 0; i < size; i++)
               printf("%s %.3f\n", drt_head_label(session, "sequence", i), probabilities[i]);

       drt_session_close(session);

   The same series while it is being reconstructed, slices in any order:

       drt_series *series = NULL;
       drt_series_geometry geometry;
       drt_default_geometry(&geometry, sizeof geometry);   // then type, shape and affine as above
       drt_series_begin(session, &geometry, &series);
       // for each slice as it comes:
       drt_slice slice;
       drt_default_slice(&slice, sizeof slice);
       slice.pixels = pixels;
       memcpy(slice.position_lps_mm, position, sizeof slice.position_lps_mm);
       drt_series_push(series, &slice);
       // after the last:
       drt_series_finish(series);                 // results are read as after drt_session_run
       drt_series_free(series);

   Rules

   - Every function returns a drt_status or cannot fail. On failure drt_last_error() says in one line what, where and
     what to do; it belongs to the calling thread and lives until that thread's next call that fails.
   - Enumerations are int32_t: their size is the same for every compiler.
   - A structure begins with struct_size: its size in the caller's program, so that a program built with an older header
     goes on working with a newer library. The drt_*default*() functions set it; where none is named, set it yourself.
     drt_box alone has none: boxes lie one after another, and stay as they are.
   - Strings given out belong to the session and live until it is closed, unless a comment says otherwise. The caller's
     pointers are read during the call only.
   - Nothing is allocated for the caller: buffers are the caller's, and NULL with capacity 0 asks for their size.
   - Thread-safety is said for each call: [any] any thread at any time; [one] one thread at a time for one session and
     its series, whichever thread that is. Different sessions never need a lock between them.
   - A thread that is cancelled (pthread_cancel) within a call ends after it.
   - After fork() a session is the parent's. The child calls nothing on it; only one with a worker process may be closed
     there, its series freed before, which leaves the parent's session as it is.
   - Once main has returned, a session may only be closed.
   - The library prints nothing, changes neither locale nor signal handlers nor the environment, opens no network
     connection, and writes a file only into params.cache_folder. Only params.threads threads compute for a session.
   - Not a medical device: see the bundle's intended use. */

#ifndef DECIPHER_RT_H
#define DECIPHER_RT_H

#include <stddef.h>
#include <stdint.h>

#define DRT_VERSION_MAJOR 0
#define DRT_VERSION_MINOR 1
#define DRT_VERSION_PATCH 0
/* Raised when a program built with an older header would no longer work; also the library's SOVERSION. */
#define DRT_ABI_VERSION 2

#if defined(_WIN32)
#define DRT_API
#else
#define DRT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ------------------------------------------------------------------------------------------------------ */

typedef int32_t drt_status;
enum {
    DRT_OK = 0,
    DRT_ERROR_ARGUMENT = 1,     /* NULL, a size or name that does not exist, a call out of order */
    DRT_ERROR_BUNDLE = 2,       /* the bundle is damaged, incomplete, of another schema, hostile, or not what it says */
    DRT_ERROR_SERIES = 3,       /* the voxels or their geometry cannot be one volume */
    DRT_ERROR_ENGINE = 4,       /* a library is absent, or refuses the bundle on this machine; a worker of another build */
    DRT_ERROR_CANCELLED = 5,    /* the cancel callback said so */
    DRT_ERROR_BUFFER_SIZE = 6,  /* the caller's buffer is too small; the size needed has been set */
    DRT_ERROR_MEMORY = 7,       /* no memory, or more than was declared at open would be needed */
    DRT_ERROR_NO_RESULT = 8,    /* nothing has been run yet, or the last run failed */
    DRT_ERROR_NOT_ANSWERED = 9, /* the series is out of the model's scope: heads are withheld */
    DRT_ERROR_WORKER_LOST = 10, /* the worker process died or did not answer in time; open a new session */
    DRT_ERROR_DEVICE_LOST = 11, /* the GPU is gone or its context is broken; open a new session, mostly in a new process */
    DRT_ERROR_UNSUPPORTED = 12, /* this build or this session cannot do it */
    DRT_ERROR_INTERNAL = 13     /* a defect of the library: please report the message */
};

/* [any] What a status means, in a few words. Never NULL. */
DRT_API const char *drt_status_text(drt_status status);
/* [any] One line on the last failure in the calling thread; "" if there was none. Never NULL. */
DRT_API const char *drt_last_error(void);
/* [any] "0.1.0", and DRT_ABI_VERSION as the library was built. */
DRT_API const char *drt_version(void);
DRT_API uint32_t drt_abi_version(void);

/* ---- opening a bundle -------------------------------------------------------------------------------------------- */

typedef struct drt_session drt_session;

typedef int32_t drt_device;
enum { DRT_CPU = 0, DRT_CUDA = 1 };

typedef int32_t drt_mode;
enum {
    DRT_IN_PROCESS = 0,
    DRT_WORKER = 1 /* a process of its own over shared memory: whatever happens to it, the host lives */
};

typedef int32_t drt_log_level;
enum { DRT_LOG_ERROR = 0, DRT_LOG_WARNING = 1, DRT_LOG_INFO = 2 };

typedef int32_t drt_stage;
enum { DRT_OPEN = 0, DRT_PREPROCESS = 1, DRT_ENCODE = 2, DRT_HEADS = 3 };

/* Callbacks run in the thread of the call that they belong to (of drt_session_enqueue: in one of the library). They must
   not call into the same session, nor throw, nor jump out: a session that has a worker process is lost by that. */
typedef void (*drt_log_callback)(void *user_data, drt_log_level level, const char *message);
/* A stage is so far done: fraction runs from 0 to 1. */
typedef void (*drt_progress_callback)(void *user_data, drt_stage stage, double fraction);
/* Return non-zero to stop; asked between stages, a few times while opening and before each head, and on the CPU every few
   milliseconds while encoding and, with more than one thread, while a segmentation is computed. */
typedef int (*drt_cancel_callback)(void *user_data);

/* Where and how a session on a GPU works. Handles are those of the CUDA driver: CUcontext, CUstream. Context, stream and
   allocator are of one process: with DRT_WORKER they must be NULL. */
typedef struct drt_cuda_params {
    size_t struct_size;
    int32_t device;   /* ordinal; used where context is NULL */
    void *context;    /* NULL: the primary context of the device */
    void *stream;     /* NULL: one is made with the priority */
    int32_t priority; /* CUDA's: lower is more urgent */
    /* NULL: cuMemAlloc. Asked while opening only, in any thread, also in several at a time; the memory then belongs to the
       session until it is closed, or to nobody once deallocate was called: nothing on the GPU uses it then. */
    void *(*allocate)(void *user_data, size_t bytes, size_t alignment);
    void (*deallocate)(void *user_data, void *pointer, size_t bytes);
    void *user_data;
} drt_cuda_params;

typedef struct drt_session_params {
    size_t struct_size;
    drt_device device;       /* never changed silently: where it is absent, opening fails */
    drt_mode mode;
    const char *precision;   /* "fp32", "fp16", "bf16", "int8": which encoder of the bundle */
    uint32_t threads;        /* how many threads may compute at a time, the caller's among them */
    const char *cache_folder; /* NULL: nothing is written. Else compiled graphs are kept there for a faster next open, and
                                 one warning is logged where they cannot be; the folder must be writable by trusted users
                                 only */
    const char *library_folder; /* NULL: the system's search. Else where libdali and TensorRT lie; libcuda is the driver's
                                   and always where the system has it. A process loads libdali once: a folder with
                                   another one is refused later */
    const char *worker_path;    /* NULL: decipher-rt-worker, found beside the library or in ../libexec/decipher_rt */
    uint32_t worker_timeout_ms; /* 0: for ever. A worker silent for longer than this within a call is killed */
    const drt_cuda_params *cuda; /* NULL: device 0 with defaults */
    drt_log_callback log;
    drt_progress_callback progress;
    drt_cancel_callback cancel;
    void *user_data; /* handed to all three */
    const char *heads; /* NULL: all heads of the bundle answer. Else the names of those that do, with commas between, and
                          "" for none: the others are not loaded and cost no time */
} drt_session_params;

/* [any] In process, on the CPU, fp32, one thread, no cache, no callbacks, all heads. */
DRT_API void drt_session_default_params(drt_session_params *params, size_t struct_size);
/* [any] Device 0, its primary context, a stream of our own with priority 0, CUDA's allocator. */
DRT_API void drt_cuda_default_params(drt_cuda_params *params, size_t struct_size);

/* [any] Open a bundle: check the manifest and the sum of every file but encoders that this session does not run, load the
   engines. *session is NULL on failure. */
DRT_API drt_status drt_session_open(const char *bundle, const drt_session_params *params, drt_session **session);
/* [one] Wait for what runs, free everything. NULL is allowed. Series of the session must have been freed. */
DRT_API void drt_session_close(drt_session *session);
/* [one] Run once on a made-up volume, all heads too, so that the first real one, whole or slice by slice, is as fast as the
   rest. That holds for int16 voxels: what other types need is made when they first come. Leaves no result. */
DRT_API drt_status drt_session_warm_up(drt_session *session);

typedef struct drt_session_info {
    size_t struct_size;
    const char *bundle_name;
    const char *bundle_version;
    const char *bundle_sha256; /* 64 hexadecimal digits that name the exact content of every file */
    const char *intended_use;
    const char *engine;    /* "openvino", "tensorrt", "tensorrt-rtx" */
    const char *device;    /* "cpu", "cuda:0" */
    const char *precision;
    uint32_t threads;
    uint32_t heads;          /* how many; ask drt_session_head */
    uint64_t embedding_size; /* floats */
    uint64_t patch_width;    /* floats of one patch token */
    uint64_t patches;        /* tokens at most */
    int64_t grid_shape[3];   /* (S, A, R) voxels */
    double grid_spacing_mm[3];
    uint64_t host_bytes;   /* the grid's voxels; not counted: engines, series, results, memory shared with a worker */
    uint64_t device_bytes; /* of the GPU; taken at open, never exceeded. 0 on the CPU */
    int64_t worker_pid;    /* 0 in process */
} drt_session_info;

typedef int32_t drt_head_kind;
enum {
    DRT_CLASSIFICATION = 0,
    DRT_REGRESSION = 1,
    DRT_SEGMENTATION = 2,
    DRT_LOCALISATION = 3 /* later versions may add kinds */
};

typedef struct drt_head_info {
    size_t struct_size;
    const char *name;
    const char *description;
    drt_head_kind kind;
    const char *unit;  /* of a regression; "" otherwise */
    uint64_t values;   /* floats that drt_head_values gives; 0 of a localisation */
} drt_head_info;

/* [one] What was opened. Set struct_size first (drt_session_info info = {sizeof info}). */
DRT_API drt_status drt_session_describe(const drt_session *session, drt_session_info *info);
/* [one] The head of an index from 0. Set struct_size first. */
DRT_API drt_status drt_session_head(const drt_session *session, uint32_t index, drt_head_info *info);
/* [one] Label i of a classification, whose probability is value i, or of a segmentation; NULL where there is none. */
DRT_API const char *drt_head_label(const drt_session *session, const char *head, size_t i);

/* ---- a volume in memory ------------------------------------------------------------------------------------------ */

typedef int32_t drt_voxel_type;
enum {
    DRT_UINT8 = 0,
    DRT_INT8 = 1,
    DRT_UINT16 = 2,
    DRT_INT16 = 3,
    DRT_UINT32 = 4,
    DRT_INT32 = 5,
    DRT_FLOAT32 = 6,
    DRT_FLOAT64 = 7
};

typedef int32_t drt_memory;
enum { DRT_HOST_MEMORY = 0, DRT_CUDA_MEMORY = 1 };

typedef struct drt_volume {
    size_t struct_size;
    const void *voxels;
    drt_memory memory; /* DRT_CUDA_MEMORY: a pointer of the session's CUDA context, written to already or by work that lies
                          on the session's stream */
    drt_voxel_type type;
    int64_t shape[3];   /* (D, H, W) = (slice, row, column) as acquired */
    int64_t strides[3]; /* in bytes, negative ones too; all 0: C-contiguous */
    /* Row-major 4 x 4: maps index (d, h, w, 1) to DICOM patient coordinates (Left, Posterior, Superior) in mm
       (PS3.3 C.7.6.2.1.1). */
    double affine_lps_mm[16];
    double slope;     /* stored * slope + intercept is the value in the scanner's units (PS3.3 C.11.1) */
    double intercept;
    /* As in DICOM, blanks around them do not count; NULL, "" and blanks alone: not known, and not judged. */
    const char *modality;  /* "MR": (0008,0060) */
    const char *body_part; /* "BRAIN": (0018,0015) */
} drt_volume;

/* [any] Host memory, C-contiguous, slope 1, intercept 0, no voxels, no shape, identity affine. */
DRT_API void drt_default_volume(drt_volume *volume, size_t struct_size);

/* [one] Preprocess, encode, ask the heads. The result is read below and lives until the next run or finish. */
DRT_API drt_status drt_session_run(drt_session *session, const drt_volume *volume);

/* A run that was enqueued has ended, so. Called once, in a thread of the library; it must not call into the same session: wake
   up the thread that does, and let it call drt_session_wait. */
typedef void (*drt_done_callback)(void *user_data, drt_status status);
/* [one] GPU sessions: start a run and return at once. Where done is not NULL it is called when the run has ended; nothing
   on the GPU waits for that, as heads run on the CPU. The voxels must stay until drt_session_wait has returned. */
DRT_API drt_status drt_session_enqueue(drt_session *session, const drt_volume *volume, drt_done_callback done,
                                       void *user_data);
/* [one] Wait for what was enqueued; its status. */
DRT_API drt_status drt_session_wait(drt_session *session);

/* ---- a series slice by slice ------------------------------------------------------------------------------------- */

typedef struct drt_series drt_series;

typedef struct drt_series_geometry {
    size_t struct_size;
    drt_voxel_type type;
    int64_t shape[3];         /* slices that will come, rows, columns */
    double affine_lps_mm[16]; /* as drt_volume; slice 0 is where its last column says */
    double slope;
    double intercept;
    const char *modality; /* this and the next: as drt_volume */
    const char *body_part;
} drt_series_geometry;

typedef struct drt_slice {
    size_t struct_size;
    const void *pixels;        /* host memory; copied or used up before drt_series_push returns */
    int64_t strides[2];        /* (row, column) in bytes; both 0: C-contiguous */
    double position_lps_mm[3]; /* centre of the first pixel: Image Position (Patient) (0020,0032) */
} drt_slice;

/* [any] Slope 1, intercept 0, no shape, identity affine; no pixels, C-contiguous, position 0 0 0. */
DRT_API void drt_default_geometry(drt_series_geometry *geometry, size_t struct_size);
DRT_API void drt_default_slice(drt_slice *slice, size_t struct_size);

/* [one] Begin. *series is NULL on failure. Several series of one session may be open; finish them one after another. */
DRT_API drt_status drt_series_begin(drt_session *session, const drt_series_geometry *geometry, drt_series **series);
/* [one] Take a slice: find its place, count its values, resample it in plane. A slice that came before is refused. */
DRT_API drt_status drt_series_push(drt_series *series, const drt_slice *slice);
/* [one] Indices (from 0, along the first axis) of the slices that have not come, ascending; *count is how many. */
DRT_API drt_status drt_series_missing(const drt_series *series, int64_t *indices, size_t capacity, size_t *count);
/* [one] All slices are there: do what is left, encode, ask the heads. Read the result from the session. */
DRT_API drt_status drt_series_finish(drt_series *series);
/* [one] Free, finished or not. NULL is allowed. */
DRT_API void drt_series_free(drt_series *series);

/* ---- the result of the last run ---------------------------------------------------------------------------------- */

typedef struct drt_scope {
    size_t struct_size;
    int32_t inside;    /* 0: the series is not what the model was made for, heads are withheld */
    int32_t has_score; /* 0: a rule on the header decided, or the bundle sets no scope */
    double score;
    const char *reason; /* one line; lives until the next run */
} drt_scope;

typedef struct drt_times {
    size_t struct_size;
    double open_ms;       /* of drt_session_open */
    double preprocess_ms; /* of the last run, with reading voxels back from a GPU; for a series, what was left to do in finish */
    double encode_ms;
    double heads_ms;
    double total_ms;      /* measured on its own */
    double arrival_ms;    /* of a series: all drt_series_push together */
} drt_times;

/* [one] Each sets *size to the number of values there are, then copies them if capacity is enough. */
/* The embedding, L2-normalised, in the space shared with text. */
DRT_API drt_status drt_embedding(const drt_session *session, float *values, size_t capacity, size_t *size);
/* Patch tokens (K, patch_width), row-major. */
DRT_API drt_status drt_patch_tokens(const drt_session *session, float *values, size_t capacity, size_t *size);
/* Which patches they are: K flat indices, row-major over the patch grid, ascending. */
DRT_API drt_status drt_token_indices(const drt_session *session, int64_t *values, size_t capacity, size_t *size);
/* GPU sessions in process: the embedding and the patch tokens once more, from where the encoder left them to `values` in device
   memory of the session's CUDA context. The copy lies on the stream of drt_cuda_params, where what comes after it finds the
   values; where that is NULL, it is waited for. */
DRT_API drt_status drt_embedding_on_device(const drt_session *session, float *values, size_t capacity, size_t *size);
DRT_API drt_status drt_patch_tokens_on_device(const drt_session *session, float *values, size_t capacity, size_t *size);
/* Probabilities in the order of the labels, one value, or the volume of each label in ml (0 for the background). */
DRT_API drt_status drt_head_values(const drt_session *session, const char *head, float *values, size_t capacity,
                                   size_t *size);
/* Of a segmentation: the label of every voxel of the volume or series that was given, (D, H, W) in its own axes,
   C-contiguous; 0 is background. Each voxel takes the label that its centre lies in. */
DRT_API drt_status drt_head_map(const drt_session *session, const char *head, uint8_t *labels, size_t capacity,
                                size_t *size);

typedef struct drt_box {
    double score; /* 0 to 1 */
    double center_lps_mm[3];
    double size_mm[3]; /* along the grid's axes, the columns of drt_grid_affine */
} drt_box;

/* Of a localisation: the boxes that reach the bundle's threshold, the best first. *size is 0 where nothing was found. */
DRT_API drt_status drt_head_boxes(const drt_session *session, const char *head, drt_box *boxes, size_t capacity,
                                  size_t *size);
/* Where the grid of the last run lies: row-major 4 x 4, maps its index (S, A, R axes) to LPS mm. */
DRT_API drt_status drt_grid_affine(const drt_session *session, double affine_lps_mm[16]);
/* [one] Set struct_size first. */
DRT_API drt_status drt_scope_of_result(const drt_session *session, drt_scope *scope);
DRT_API drt_status drt_times_of_result(const drt_session *session, drt_times *times);

#ifdef __cplusplus
}
#endif

#endif
