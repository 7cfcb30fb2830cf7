/* Many small PNGs at once, without Python's lock from the first to the last.

   A PNG of 32 x 32 takes 30 microseconds to decode; giving the lock away for it and waiting for it again takes as long
   or longer, and two threads are no faster than one. Here are the PNGs that data sets of small images consist of: 8 bits,
   gray or RGB, not interlaced. All others, and whatever is not as it should be, are left to Python, which decodes them
   or says what is wrong (sample_reader.py). PNG specification, 3rd edition: https://www.w3.org/TR/png-3/

   Two thirds of the time is zlib's. libdeflate does the same in less than half, but wants all of a stream at once, and
   is not everywhere: it is looked for when this is imported, and zlib does what it does not. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define LARGEST (1 << 20) /* pixels */

typedef struct {
    const uint8_t *data;
    Py_ssize_t size;
    unsigned long crc;
    int height, width;
    uint8_t *out; /* [height, width, 3] */
    int is_decoded;
} Image;

/* What is used of libdeflate.h: all there or none. */
static struct {
    void *(*alloc_decompressor)(void);
    void (*free_decompressor)(void *);
    int (*zlib_decompress_ex)(void *, const void *in, size_t size, void *out, size_t room, size_t *taken, size_t *given);
    uint32_t (*crc32)(uint32_t crc, const void *data, size_t size);
} fast;

static int find_libdeflate(void) {
    static const char *const names[] = {"libdeflate.so.0", "libdeflate.0.dylib"};
    void *library = NULL;
    for (int i = 0; i < 2 && !library; i++) library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library) return 0;
    *(void **)&fast.alloc_decompressor = dlsym(library, "libdeflate_alloc_decompressor");
    *(void **)&fast.free_decompressor = dlsym(library, "libdeflate_free_decompressor");
    *(void **)&fast.zlib_decompress_ex = dlsym(library, "libdeflate_zlib_decompress_ex");
    *(void **)&fast.crc32 = dlsym(library, "libdeflate_crc32");
    return fast.alloc_decompressor && fast.free_decompressor && fast.zlib_decompress_ex && fast.crc32;
}

/* What inflates: zlib always, libdeflate where it is. */
typedef struct {
    z_stream stream;
    void *whole;
} Inflater;

static uint32_t number(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Of the three neighbours the one nearest to left + above - corner. */
static inline uint8_t paeth(int left, int above, int corner) {
    int from_left = abs(above - corner), from_above = abs(left - corner), from_corner = abs(left + above - 2 * corner);
    int nearest = from_above < from_left ? above : left, least = from_above < from_left ? from_above : from_left;
    return (uint8_t)(from_corner < least ? corner : nearest);
}

#ifdef __SSE2__
/* A row of RGB, three channels at once. Reads a byte past each row. */
static void unfilter_paeth_rgb(uint8_t *row, const uint8_t *rgb_above, int bytes) {
    const __m128i zero = _mm_setzero_si128();
    __m128i left = zero, corner = zero;
    for (int i = 0; i < bytes; i += 3) {
        int32_t four;
        memcpy(&four, rgb_above + i, 4);
        __m128i above = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero);
        memcpy(&four, row + i, 4);
        __m128i from_left = _mm_sub_epi16(above, corner), from_above = _mm_sub_epi16(left, corner);
        __m128i from_corner = _mm_add_epi16(from_left, from_above);
        from_left = _mm_max_epi16(from_left, _mm_sub_epi16(zero, from_left));
        from_above = _mm_max_epi16(from_above, _mm_sub_epi16(zero, from_above));
        from_corner = _mm_max_epi16(from_corner, _mm_sub_epi16(zero, from_corner));
        __m128i least = _mm_min_epi16(from_corner, _mm_min_epi16(from_left, from_above));
        __m128i is_left = _mm_cmpeq_epi16(least, from_left), is_above = _mm_cmpeq_epi16(least, from_above);
        __m128i other = _mm_or_si128(_mm_and_si128(is_above, above), _mm_andnot_si128(is_above, corner));
        __m128i nearest = _mm_or_si128(_mm_and_si128(is_left, left), _mm_andnot_si128(is_left, other));
        __m128i sum = _mm_add_epi8(_mm_cvtsi32_si128(four), _mm_packus_epi16(nearest, nearest));
        four = _mm_cvtsi128_si32(sum);
        memcpy(row + i, &four, 3);
        left = _mm_unpacklo_epi8(sum, zero), corner = above;
    }
}
#endif

/* Undo a row's filter in place. above: the row before, zeros for the first. step: bytes of a pixel. */
static int unfilter(int filter, uint8_t *row, const uint8_t *above, int bytes, int step) {
    switch (filter) {
    case 0:
        return 1;
    case 1:
        for (int i = step; i < bytes; i++) row[i] += row[i - step];
        return 1;
    case 2:
        for (int i = 0; i < bytes; i++) row[i] += above[i];
        return 1;
    case 3:
        for (int i = 0; i < step; i++) row[i] += above[i] / 2;
        for (int i = step; i < bytes; i++) row[i] += (uint8_t)((row[i - step] + above[i]) / 2);
        return 1;
    case 4:
#ifdef __SSE2__
        if (step == 3) return unfilter_paeth_rgb(row, above, bytes), 1;
#endif
        for (int i = 0; i < step; i++) row[i] += above[i];
        for (int i = step; i < bytes; i++) row[i] += paeth(row[i - step], above[i], above[i - step]);
        return 1;
    default:
        return 0;
    }
}

/* One more IDAT chunk of an image. The first is tried whole: most images have no other. */
static int inflate_chunk(Inflater *inflater, int is_first, uint8_t *bytes, uint32_t size) {
    z_stream *stream = &inflater->stream;
    size_t taken, given;
    if (is_first && inflater->whole &&
        !fast.zlib_decompress_ex(inflater->whole, bytes, size, stream->next_out, stream->avail_out, &taken, &given) &&
        taken == size) {
        stream->avail_out -= (uInt)given;
        return Z_STREAM_END;
    }
    stream->next_in = bytes, stream->avail_in = size;
    int status = inflate(stream, Z_NO_FLUSH);
    return stream->avail_in ? Z_DATA_ERROR : status;
}

static unsigned long crc_of(const Inflater *inflater, const uint8_t *bytes, size_t size) {
    return inflater->whole ? fast.crc32(0, bytes, size) : crc32(0, bytes, (uInt)size);
}

/* All IDAT chunks into `rows`, which they must fill exactly. Whether they do, and there is nothing between that changes
   what the pixels mean. */
static int inflate_chunks(const Image *image, Inflater *inflater, uint8_t *rows, size_t bytes) {
    int status = Z_OK, is_first = 1;
    z_stream *stream = &inflater->stream;
    stream->next_out = rows, stream->avail_out = (uInt)bytes;
    for (Py_ssize_t at = 8; image->size - at >= 12;) {
        const uint8_t *chunk = image->data + at;
        uint32_t size = number(chunk);
        if (size > (size_t)(image->size - at - 12)) return 0;
        if (crc_of(inflater, chunk + 4, (size_t)size + 4) != number(chunk + 8 + size)) return 0; /* Python judges */
        at += 12 + (Py_ssize_t)size;
        if (!memcmp(chunk + 4, "IDAT", 4)) {
            if (status != Z_OK) return 0;
            if (size) status = inflate_chunk(inflater, is_first, (Bytef *)(chunk + 8), size), is_first = 0;
            if (status != Z_OK && status != Z_STREAM_END) return 0;
        } else if (!memcmp(chunk + 4, "IEND", 4)) {
            return status == Z_STREAM_END && !stream->avail_out;
        } else if (!memcmp(chunk + 4, "tRNS", 4) || !memcmp(chunk + 4, "acTL", 4)) {
            return 0;
        } else if (!(chunk[4] & 0x20) && memcmp(chunk + 4, "IHDR", 4)) {
            return 0; /* a critical chunk, a palette say */
        }
    }
    return 0;
}

static int decode(Image *image, Inflater *inflater, uint8_t *rows) {
    static const uint8_t beginning[16] = "\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
    const uint8_t *header = image->data + 16;
    if (image->size < 33 || memcmp(image->data, beginning, 16)) return 0;
    if (number(header) != (uint32_t)image->width || number(header + 4) != (uint32_t)image->height) return 0;
    int channels = header[9] == 0 ? 1 : header[9] == 2 ? 3 : 0, bytes = channels * image->width;
    if (header[8] != 8 || !channels || header[10] || header[11] || header[12]) return 0;
    if (crc_of(inflater, image->data, (size_t)image->size) != image->crc) return 0;
    uint8_t *above = rows; /* a row of zeros before the first */
    memset(above, 0, (size_t)bytes + 1);
    rows += bytes + 1;
    size_t all = ((size_t)bytes + 1) * image->height;
    if (inflateReset(&inflater->stream) != Z_OK || !inflate_chunks(image, inflater, rows, all)) return 0;
    uint8_t *out = image->out;
    for (int y = 0; y < image->height; y++, above = rows, rows += bytes + 1) {
        if (!unfilter(rows[0], rows + 1, above + 1, bytes, channels)) return 0;
        if (channels == 3)
            memcpy(out, rows + 1, (size_t)bytes), out += bytes;
        else
            for (int x = 1; x <= bytes; x++, out += 3) out[0] = out[1] = out[2] = rows[x];
    }
    return 1;
}

static void decode_all(Image *images, Py_ssize_t count, size_t largest, int by_zlib) {
    Inflater inflater = {0};
    uint8_t *rows = malloc(largest + 1);
    if (rows && inflateInit(&inflater.stream) == Z_OK) {
        if (fast.alloc_decompressor && !by_zlib) inflater.whole = fast.alloc_decompressor();
        for (Image *image = images; image < images + count; image++) image->is_decoded = decode(image, &inflater, rows);
        if (inflater.whole) fast.free_decompressor(inflater.whole);
        inflateEnd(&inflater.stream);
    }
    free(rows);
}

/* decode_pngs([(bytes, crc32, height, width), ...], by_zlib=False) -> [bytes of RGB, or None where it is not for here] */
static PyObject *decode_pngs(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *wanted;
    int by_zlib = 0; /* as where libdeflate is not */
    if (!PyArg_ParseTuple(arguments, "O|p", &wanted, &by_zlib)) return NULL;
    if (!PyList_Check(wanted)) return PyErr_Format(PyExc_TypeError, "a list expected");
    Py_ssize_t count = PyList_Size(wanted);
    Image *images = PyMem_Calloc((size_t)count + 1, sizeof(Image));
    if (!images) return PyErr_NoMemory();
    size_t largest = 1;
    PyObject *decoded = PyList_New(count);
    if (!decoded) goto failed;
    for (Py_ssize_t i = 0; i < count; i++) {
        Image *image = images + i;
        PyObject *data, *out;
        char *bytes;
        if (!PyArg_ParseTuple(PyList_GetItem(wanted, i), "Skii", &data, &image->crc, &image->height, &image->width)) goto failed;
        if (image->height < 1 || image->width < 1 || image->height > LARGEST / image->width) {
            PyErr_SetString(PyExc_ValueError, "an image of 1 to 1,048,576 pixels expected");
            goto failed;
        }
        if (PyBytes_AsStringAndSize(data, &bytes, &image->size)) goto failed;
        size_t pixels = (size_t)image->height * image->width, rows = (3 * (size_t)image->width + 1) * (image->height + 1);
        if (!(out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(3 * pixels)))) goto failed;
        PyList_SetItem(decoded, i, out);
        image->data = (const uint8_t *)bytes, image->out = (uint8_t *)PyBytes_AsString(out);
        if (rows > largest) largest = rows;
    }
    Py_BEGIN_ALLOW_THREADS
    decode_all(images, count, largest, by_zlib);
    Py_END_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++)
        if (!images[i].is_decoded) PyList_SetItem(decoded, i, Py_NewRef(Py_None));
    PyMem_Free(images);
    return decoded;
failed:
    PyMem_Free(images);
    Py_XDECREF(decoded);
    return NULL;
}

static PyMethodDef methods[] = {
    {"decode_pngs", decode_pngs, METH_VARARGS, "[(bytes, crc32, height, width), ...] -> [RGB bytes, or None where Python has to, ...]"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_png", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__png(void) {
    PyObject *module = PyModule_Create(&definition);
    if (!find_libdeflate()) memset(&fast, 0, sizeof fast);
    if (module && PyModule_AddIntConstant(module, "has_libdeflate", fast.alloc_decompressor != NULL)) Py_CLEAR(module);
    return module;
}
