// Records what the decompressor that Ollama uses makes of bodies, for src/route: in a module that requires
// github.com/klauspost/compress v1.18.3, go run tests/data/go-zstd.go > tests/data/go-zstd.jsonl
// (Recorded with go1.26.8. The seed is fixed; another release may compress otherwise.)
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
)

var r = rand.New(rand.NewSource(2026))

type vector struct {
	Body   []byte `json:"body"`             // base64
	Length int    `json:"length"`           // of what came out
	Sum    string `json:"sum,omitempty"`    // SHA-256 of it, if there was no error
	Error  string `json:"error,omitempty"`
}

func text() []byte {
	switch r.Intn(6) {
	case 0:
		return []byte(`{"model":"m","prompt":"` + strings.Repeat("a", r.Intn(300_000)) + `"}`)
	case 1:
		b := make([]byte, r.Intn(600))
		r.Read(b)
		return b
	case 2:
		var b strings.Builder
		for b.Len() < 5000 {
			fmt.Fprintf(&b, "{\"role\":\"user\",\"content\":\"%d bottles of %x\"},", r.Intn(100), r.Intn(7))
		}
		return []byte(b.String())
	case 3:
		return nil
	default:
		return []byte(`{"model":"m","messages":[{"role":"user","content":"hello"}]}`)
	}
}

func packed(text []byte) []byte {
	var b bytes.Buffer
	options := []zstd.EOption{zstd.WithEncoderLevel(zstd.EncoderLevel(1 + r.Intn(4))), zstd.WithEncoderCRC(r.Intn(2) == 0), zstd.WithZeroFrames(true)}
	if r.Intn(3) == 0 {
		options = append(options, zstd.WithWindowSize(1<<(10+r.Intn(20))))
	}
	if r.Intn(3) == 0 {
		options = append(options, zstd.WithSingleSegment(true))
	}
	if r.Intn(4) == 0 {
		options = append(options, zstd.WithEncoderPadding(16+r.Intn(100)))
	}
	w, err := zstd.NewWriter(&b, options...)
	if err != nil {
		panic(err)
	}
	if r.Intn(2) == 0 {
		w.Write(text)
		w.Close()
		return b.Bytes()
	}
	return w.EncodeAll(text, nil)
}

func record(body []byte) (v vector) {
	v.Body = body
	reader, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderMaxMemory(8<<20))
	if err == nil {
		defer reader.Close()
		var out []byte
		out, err = io.ReadAll(io.LimitReader(reader, 20<<20+1))
		v.Length = len(out)
		if err == nil && len(out) > 20<<20 {
			err = fmt.Errorf("http: request body too large")
		}
		sum := sha256.Sum256(out)
		v.Sum = hex.EncodeToString(sum[:])
	}
	if err != nil {
		v.Sum, v.Error = "", err.Error()
	}
	return v
}

func main() {
	out := json.NewEncoder(os.Stdout)
	for i := 0; i < 400; i++ {
		body := packed(text())
		for r.Intn(4) == 0 {
			body = append(body, packed(text())...)
		}
		switch r.Intn(12) {
		case 0:
			body = body[:r.Intn(len(body)+1)]
		case 1, 2:
			if len(body) > 0 {
				body[r.Intn(len(body))] ^= byte(1 + r.Intn(255))
			}
		case 3:
			body = append(body, "x\x00\x01"[:1+r.Intn(3)]...)
		}
		if len(body) < 3000 {
			out.Encode(record(body))
		}
	}
	// The bounds.
	for _, size := range []int{8 << 20, 8<<20 + 1, 9 << 20, 20 << 20, 20<<20 + 1} {
		a := bytes.Repeat([]byte("A"), size)
		for _, window := range []int{1 << 20, 8 << 20, 16 << 20} {
			w, _ := zstd.NewWriter(nil, zstd.WithWindowSize(window), zstd.WithEncoderLevel(zstd.SpeedBestCompression))
			out.Encode(record(w.EncodeAll(a, nil)))
			var b bytes.Buffer
			w.Reset(&b)
			for i := 0; i < len(a); i += 1 << 16 {
				w.Write(a[i:min(i+1<<16, len(a))])
				if i == 0 {
					w.Flush()
				}
			}
			w.Close()
			out.Encode(record(b.Bytes()))
		}
	}
}
