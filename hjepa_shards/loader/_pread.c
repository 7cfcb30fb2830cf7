/* Many reads of open files at once, without Python's lock from the first to the last.

   os.pread gives the lock away and waits for it again, sample by sample: with small images two threads then read slower
   than one. What cannot be read here is left to Python, which tries again and says what is wrong (shard_store.py). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <unistd.h>

typedef struct {
    int descriptor;
    long long offset;
    char *bytes;
    Py_ssize_t size, found;
} Read;

static void read_all(Read *reads, Py_ssize_t count) {
    for (Read *one = reads; one < reads + count; one++)
        while (one->found < one->size) {
            ssize_t more = pread(one->descriptor, one->bytes + one->found, (size_t)(one->size - one->found),
                                 (off_t)(one->offset + one->found));
            if (more < 0 && errno == EINTR) continue;
            if (more <= 0) break;
            one->found += more;
        }
}

/* preads([(descriptor, offset, size), ...]) -> [bytes, or None where it could not be read or ends before] */
static PyObject *preads(PyObject *module, PyObject *wanted) {
    (void)module;
    if (!PyList_Check(wanted)) return PyErr_Format(PyExc_TypeError, "a list expected");
    Py_ssize_t count = PyList_Size(wanted);
    Read *reads = PyMem_Calloc((size_t)count + 1, sizeof(Read));
    if (!reads) return PyErr_NoMemory();
    PyObject *found = PyList_New(count);
    if (!found) goto failed;
    for (Py_ssize_t i = 0; i < count; i++) {
        Read *one = reads + i;
        PyObject *item = PyList_GetItem(wanted, i);
        if (!PyArg_ParseTuple(item, "iLn", &one->descriptor, &one->offset, &one->size)) goto failed;
        PyObject *bytes = PyBytes_FromStringAndSize(NULL, one->size); /* refuses a negative size */
        if (!bytes) goto failed;
        PyList_SetItem(found, i, bytes);
        one->bytes = PyBytes_AsString(bytes);
    }
    Py_BEGIN_ALLOW_THREADS
    read_all(reads, count);
    Py_END_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++)
        if (reads[i].found < reads[i].size) PyList_SetItem(found, i, Py_NewRef(Py_None));
    PyMem_Free(reads);
    return found;
failed:
    PyMem_Free(reads);
    Py_XDECREF(found);
    return NULL;
}

static PyMethodDef methods[] = {
    {"preads", preads, METH_O, "[(descriptor, offset, size), ...] -> [bytes, or None where they cannot be read, ...]"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_pread", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__pread(void) { return PyModule_Create(&definition); }
