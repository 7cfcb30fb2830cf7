/* Bilinear resize of RGB bytes, pixel for pixel what OpenCV's INTER_LINEAR gives, in half of its time; _area.h: the mean.

   Of what a loader does to a photograph only its decode takes longer. OpenCV's code for three channels goes pixel by
   pixel; here eight bytes hold both neighbours of a pixel, and four pixels are weighed at once (AVX2). _wide.h weighs
   five at once, where the processor can.

   The arithmetic is OpenCV's (modules/imgproc/src/resize.cpp): weights of 11 bits, rows first. A row's sums lose 4 bits
   to fit 16, each of the two rows is multiplied by its weight and loses 16 bits, their sum is rounded by 2 bits.

   decode.py asks for this module and takes OpenCV where it is not: no compiler at install, another processor. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))
#define ONE 2048 /* a weight of 1 */
#define PAD 8    /* output pixels are worked on in eights */
#define SMALL (3 * 64 * 64)

/* What a row of the source needs to become a row of sums, the same for every row. */
typedef struct {
    int count;        /* output pixels, padded */
    int32_t *start;   /* [count] bytes into the row where the left neighbour begins */
    int32_t *weights; /* [count][4] pairs of 16 bits (left, right) for R, G, B and nothing; see `place` */
} Row;

/* Four pixels are loaded as 0 2 | 1 3, so that packing their sums puts them in order. */
static int place(int x) { return (x & ~3) | ((x & 1) << 1) | ((x >> 1) & 1); }

/* Left or upper neighbour of output pixel x, and how far to the other one. In single precision, as OpenCV does. */
AVX2 static int neighbour(int x, double scale, float *between) {
    float at = (float)((x + 0.5) * scale - 0.5);
    int low = (int)at - (at < (float)(int)at);
    *between = at - (float)low;
    return low;
}

AVX2 static int weight(float share) { return _mm_cvtss_si32(_mm_set_ss(share * ONE)); /* to nearest, ties to even */ }

/* Left neighbour of output pixel x, one that has another to its right, and the weights of both as 16 bits each. */
AVX2 static int left_of(int x, double scale, int width, int32_t *pair) {
    float between;
    int low = neighbour(x, scale, &between);
    if (low < 0) low = 0, between = 0;
    if (low >= width - 1) low = width - 2, between = 1; /* the last column alone */
    *pair = weight(1 - between) | weight(between) << 16;
    return low;
}

AVX2 static void plan_row(Row *row, int width, int size) {
    double scale = 1.0 / ((double)size / width);
    for (int x = 0; x < row->count; x++) {
        int32_t pair;
        row->start[x] = 3 * left_of(x < size ? x : size - 1, scale, width, &pair);
        _mm_storeu_si128((__m128i *)(row->weights + 4 * place(x)), _mm_setr_epi32(pair, pair, pair, 0));
    }
}

AVX2 static __m256i two_pixels(const uint8_t *a, const uint8_t *b) {
    __m128i first = _mm_loadl_epi64((const __m128i *)a), second = _mm_loadl_epi64((const __m128i *)b);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}

/* A row of bytes -> sums [count][4] of 15 bits. Reads up to two bytes past the row. */
AVX2 static void across(const Row *row, const uint8_t *bytes, int16_t *sums) {
    const __m256i pairs = _mm256_broadcastsi128_si256( /* r r' g g' b b' - -, each byte widened to 16 bits */
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const int32_t *start = row->start, *weights = row->weights;
    for (int x = 0, count = row->count; x < count; x += 4) {
        __m256i a = _mm256_shuffle_epi8(two_pixels(bytes + start[x], bytes + start[x + 2]), pairs);
        __m256i b = _mm256_shuffle_epi8(two_pixels(bytes + start[x + 1], bytes + start[x + 3]), pairs);
        a = _mm256_srai_epi32(_mm256_madd_epi16(a, _mm256_loadu_si256((const __m256i *)(weights + 4 * x))), 4);
        b = _mm256_srai_epi32(_mm256_madd_epi16(b, _mm256_loadu_si256((const __m256i *)(weights + 4 * x + 8))), 4);
        _mm256_storeu_si256((__m256i *)(sums + 4 * x), _mm256_packs_epi32(a, b));
    }
}

AVX2 static __m256i weigh(const int16_t *upper, const int16_t *lower, __m256i of_upper, __m256i of_lower) {
    __m256i a = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)upper), of_upper);
    __m256i b = _mm256_mulhi_epi16(_mm256_loadu_si256((const __m256i *)lower), of_lower);
    return _mm256_srai_epi16(_mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_set1_epi16(2)), 2);
}

/* Two rows of sums -> `size` pixels of three bytes. */
AVX2 static void down(const int16_t *upper, const int16_t *lower, float between, int size, uint8_t *out) {
    const __m256i of_upper = _mm256_set1_epi16((short)weight(1 - between));
    const __m256i of_lower = _mm256_set1_epi16((short)weight(between));
    const __m256i three_of_four = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    for (int x = 0; x < size; x += PAD) {
        const int16_t *a = upper + 4 * x, *b = lower + 4 * x;
        __m256i eight = _mm256_packus_epi16(weigh(a, b, of_upper, of_lower), weigh(a + 16, b + 16, of_upper, of_lower));
        eight = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(eight, 0xD8), three_of_four);
        uint8_t end[28], *to = x + PAD + 2 <= size ? out + 3 * x : end; /* 28 bytes are written, 24 of them pixels */
        _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(eight));
        _mm_storeu_si128((__m128i *)(to + 12), _mm256_extracti128_si256(eight, 1));
        if (to == end) memcpy(out + 3 * x, end, 3 * (size_t)(size - x < PAD ? size - x : PAD));
    }
}

#include "_wide.h"

static int has_avx512; /* set at import */

/* -1 where there is no memory. source: `stride` bytes a row; out: rows x columns pixels without gaps. */
AVX2 static int resize(const uint8_t *source, int height, int width, Py_ssize_t stride, uint8_t *out, int rows, int columns) {
    size_t count = ((size_t)columns + PAD - 1) / PAD * PAD, values = wide_count(columns), last_bytes = 3 * (size_t)width;
    size_t bytes = count * (4 + 16 + 2 * 8) + values * (4 + 4 + 2 * 2) + values / 4 + last_bytes + 8;
    int32_t *memory = aligned_alloc(BLOCK, (bytes + BLOCK - 1) / BLOCK * BLOCK);
    if (!memory) return -1;
    Wide wide = {.count = (int)values, .weights = memory, .pick = memory + values, .start = memory + 3 * values};
    int16_t *sums[2] = {(int16_t *)(memory + 2 * values), (int16_t *)(memory + 2 * values + values / 2)};
    int is_wide = has_avx512 && plan_wide(&wide, width, columns);
    Row row = {.count = (int)count, .start = memory, .weights = memory + count};
    uint8_t *last = (uint8_t *)(memory + 9 * count); /* nothing may be read past the last row where it is */
    if (!is_wide) {
        sums[0] = (int16_t *)(memory + 5 * count), sums[1] = (int16_t *)(memory + 7 * count);
        memcpy(last, source + (height - 1) * stride, last_bytes);
        plan_row(&row, width, columns);
    }
    double scale = 1.0 / ((double)rows / height);
    int held[2] = {-1, -1}; /* which row's sums each slot holds: even rows in one, odd in the other */
    for (int y = 0; y < rows; y++, out += (Py_ssize_t)3 * columns) {
        float between;
        int low = neighbour(y, scale, &between);
        int pair[2] = {low < 0 ? 0 : low, low + 1 < height ? low + 1 : height - 1};
        for (int i = 0; i < 2; i++) {
            int from = pair[i];
            if (held[from & 1] == from) continue;
            if (is_wide) across_wide(&wide, source + from * stride, sums[from & 1]);
            else across(&row, from == height - 1 ? last : source + from * stride, sums[from & 1]);
            held[from & 1] = from;
        }
        (is_wide ? down_wide : down)(sums[pair[0] & 1], sums[pair[1] & 1], between, columns, out);
    }
    free(memory);
    return 0;
}

#include "_area.h"

static int is_image(const Py_buffer *view, int contiguous) {
    return view->ndim == 3 && view->itemsize == 1 && view->shape[2] == 3 && view->strides[2] == 1 &&
           view->strides[1] == 3 && view->shape[0] > 0 && view->shape[1] > 0 && view->shape[0] <= INT32_MAX / 4 &&
           view->shape[1] <= INT32_MAX / 64 && view->strides[0] >= 3 * view->shape[1] &&
           (!contiguous || view->strides[0] == 3 * view->shape[1]);
}

typedef int Resize(const uint8_t *source, int height, int width, Py_ssize_t stride, uint8_t *out, int rows, int columns);

static PyObject *resized(PyObject *arguments, Resize *by, int (*takes)(const Py_buffer *, const Py_buffer *), const char *expected) {
    PyObject *source_object, *out_object, *result = NULL;
    Py_buffer source = {0}, out = {0};
    if (!PyArg_ParseTuple(arguments, "OO", &source_object, &out_object)) return NULL;
    if (PyObject_GetBuffer(source_object, &source, PyBUF_STRIDES)) return NULL;
    if (PyObject_GetBuffer(out_object, &out, PyBUF_STRIDES | PyBUF_WRITABLE)) goto done;
    if (!is_image(&source, 0) || !is_image(&out, 1) || !takes(&source, &out)) {
        PyErr_Format(PyExc_ValueError, "bytes [H, W, 3] expected, %s, and without gaps to write to", expected);
        goto done;
    }
    /* what takes a few microseconds is done before another thread would have woken up */
    PyThreadState *state = out.len > SMALL ? PyEval_SaveThread() : NULL;
    int failed = by(source.buf, (int)source.shape[0], (int)source.shape[1], source.strides[0], out.buf,
                    (int)out.shape[0], (int)out.shape[1]);
    if (state) PyEval_RestoreThread(state);
    result = failed ? PyErr_NoMemory() : Py_NewRef(Py_None);
done:
    PyBuffer_Release(&source);
    if (out.obj) PyBuffer_Release(&out);
    return result;
}

static int is_wide(const Py_buffer *source, const Py_buffer *out) {
    (void)out;
    return source->shape[1] >= 3;
}

static int shrinks(const Py_buffer *source, const Py_buffer *out) {
    Py_ssize_t height = source->shape[0], width = source->shape[1], rows = out->shape[0], columns = out->shape[1];
    return width >= 2 && height >= rows && width >= columns && (height % rows || width % columns);
}

static PyObject *bilinear(PyObject *module, PyObject *arguments) {
    (void)module;
    return resized(arguments, resize, is_wide, "at least 3 wide");
}

static PyObject *mean(PyObject *module, PyObject *arguments) {
    (void)module;
    return resized(arguments, average, shrinks, "larger than what is written to, and not by whole numbers");
}

/* A crop of a small image, and where it goes. */
typedef struct {
    const uint8_t *crop;
    Py_ssize_t stride;
    int height, width;
    uint8_t *out;
} Crop;

static int resize_all(const Crop *crops, Py_ssize_t count, int side) {
    for (const Crop *one = crops; one < crops + count; one++) {
        if (one->height != side || one->width != side) {
            if (resize(one->crop, one->height, one->width, one->stride, one->out, side, side)) return -1;
            continue;
        }
        for (int y = 0; y < side; y++) memcpy(one->out + (size_t)3 * side * y, one->crop + y * one->stride, (size_t)3 * side);
    }
    return 0;
}

/* bilinear_many([(bytes, height, width, top, left, crop height, crop width, number of the output), ...], outputs) */
static PyObject *bilinear_many(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *wanted, *out_object, *result = NULL;
    Py_buffer out;
    if (!PyArg_ParseTuple(arguments, "OO", &wanted, &out_object)) return NULL;
    if (!PyList_Check(wanted)) return PyErr_Format(PyExc_TypeError, "a list expected");
    if (PyObject_GetBuffer(out_object, &out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)) return NULL;
    Py_ssize_t count = PyList_Size(wanted);
    Crop *crops = PyMem_Calloc((size_t)count + 1, sizeof(Crop));
    if (!crops) {
        PyErr_NoMemory();
        goto done;
    }
    if (out.ndim != 4 || out.itemsize != 1 || out.shape[3] != 3 || out.shape[1] != out.shape[2] || out.shape[1] > 1 << 15) goto wrong;
    int side = (int)out.shape[1];
    for (Py_ssize_t i = 0; i < count; i++) {
        Crop *one = crops + i;
        PyObject *pixels;
        char *bytes;
        Py_ssize_t size;
        int height, width, top, left, number;
        if (!PyArg_ParseTuple(PyList_GetItem(wanted, i), "Siiiiiii", &pixels, &height, &width, &top, &left, &one->height,
                              &one->width, &number) ||
            PyBytes_AsStringAndSize(pixels, &bytes, &size))
            goto done;
        if (height < 1 || width < 3 || height > 1 << 15 || width > 1 << 15 || size != (Py_ssize_t)3 * height * width ||
            top < 0 || left < 0 || one->height < 1 || one->width < 3 || one->height > height - top ||
            one->width > width - left || number < 0 || number >= out.shape[0])
            goto wrong;
        one->stride = (Py_ssize_t)3 * width;
        one->crop = (const uint8_t *)bytes + top * one->stride + 3 * left;
        one->out = (uint8_t *)out.buf + (Py_ssize_t)3 * side * side * number;
    }
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = resize_all(crops, count, side);
    Py_END_ALLOW_THREADS
    result = failed ? PyErr_NoMemory() : Py_NewRef(Py_None);
    goto done;
wrong:
    PyErr_SetString(PyExc_ValueError, "crops that lie in their images, at least 3 wide, and outputs [n, R, R, 3] expected");
done:
    PyMem_Free(crops);
    PyBuffer_Release(&out);
    return result;
}

static int is_possible(void) {
    has_avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi");
    return __builtin_cpu_supports("avx2");
}

static PyObject *use_avx512(PyObject *module, PyObject *wanted) {
    (void)module;
    int is_wanted = PyObject_IsTrue(wanted);
    if (is_wanted < 0) return NULL;
    is_possible();
    has_avx512 &= is_wanted;
    return PyBool_FromLong(has_avx512);
}

static PyMethodDef methods[] = {
    {"use_avx512", use_avx512, METH_O, "May `bilinear` use it? Whether it does now; the pixels are the same."},
    {"bilinear_many", bilinear_many, METH_VARARGS, "The same of crops of images as bytes, each into its slot of an array [n, R, R, 3]."},
    {"bilinear", bilinear, METH_VARARGS, "Resize bytes [H, W, 3], W >= 3, into all of another array, as cv2.INTER_LINEAR does."},
    {"mean", mean, METH_VARARGS, "Resize bytes [H, W, 3] into all of a smaller array, as cv2.INTER_AREA does; not by whole numbers."},
    {NULL, NULL, 0, NULL},
};
#else
static PyMethodDef methods[] = {{NULL, NULL, 0, NULL}};
static int is_possible(void) { return 0; }
#endif

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_resize", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__resize(void) {
    if (!is_possible()) {
        PyErr_SetString(PyExc_ImportError, "needs an x86-64 processor with AVX2");
        return NULL;
    }
    return PyModule_Create(&definition);
}
