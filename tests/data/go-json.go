// Records what Go's encoding/json makes of bodies, for src/route: go run tests/data/go-json.go > tests/data/go-json.jsonl
// (Recorded with go1.26.8. The seed is fixed; another release of Go may draw other numbers from it.)
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"strings"
)

type request struct {
	Model string `json:"model"`
	Name  string `json:"name"`
}

var r = rand.New(rand.NewSource(2026))

func pick(s ...string) string { return s[r.Intn(len(s))] }

func str(depth int) string {
	return `"` + pick("m", "model", "name", "MODEL", "Model", "n", "", "keep_alive", `\u006dodel`, `mod\u0065l`, `\u004eame`, "mo\u0064el",
		`a\"b\\`, `\ud83d`, `\ud83d\ude00`, `\ude00x`, "ſ", "K", "name ", "\xff", "model\xff", `\/`, `\b\f\n\r\t`, "x:cloud", `\u0000`, "modeł",
		pick(`\x`, `\u12g4`, "\n", "\x01", "\x7f", "ok", "ok", "ok", "ok", "ok", "ok", "ok", "ok")) + `"`
}

func num() string {
	return pick("0", "1", "-1", "12", "123456789012345678901234567890", "0.5", "1e5", "1E+5", "-0", "1.25e-3",
		pick("01", "1.", ".5", "+1", "-", "1e", "0x1", "1_0", "7", "7", "7", "7"))
}

func ws() string { return pick("", "", "", " ", "\n", "\t\r", pick("", "", "\u00a0", "\f")) }

func value(depth int) string {
	k := r.Intn(10)
	if depth <= 0 && k >= 8 {
		k = r.Intn(8)
	}
	switch {
	case k < 4:
		return str(depth)
	case k < 6:
		return num()
	case k < 8:
		return pick("null", "true", "false", "null", pick("nul", "True", "null", "null"))
	case k == 8:
		n := r.Intn(3)
		var items []string
		for i := 0; i < n; i++ {
			items = append(items, ws()+value(depth-1)+ws())
		}
		return "[" + strings.Join(items, ",") + pick("", "", "", "", "", "", "", "", "", "", ",") + "]"
	default:
		return object(depth - 1)
	}
}

func object(depth int) string {
	n := r.Intn(5)
	var fields []string
	for i := 0; i < n; i++ {
		key := str(depth)
		if r.Intn(2) == 0 {
			key = `"` + pick("model", "name", "Model", "NAME") + `"`
		}
		v := value(depth)
		if r.Intn(2) == 0 {
			v = str(depth)
		}
		fields = append(fields, ws()+key+ws()+":"+ws()+v+ws())
	}
	return "{" + strings.Join(fields, ",") + pick("", "", "", "", "", "", "", "", "", "", "", "", ",") + "}"
}

type vector struct {
	Body  []byte  `json:"body"` // base64
	Read  bool    `json:"read"` // a request was read
	Model *string `json:"model,omitempty"`
	Valid bool    `json:"valid"` // the syntax of the first value is
}

func main() {
	out := json.NewEncoder(os.Stdout)
	seen := map[string]bool{}
	count := map[string]int{}
	for len(seen) < 1500 {
		body := ws() + object(3) + pick("", "", "", " x", "{}", `{"model":"y"}`)
		switch r.Intn(12) {
		case 0:
			if len(body) > 1 {
				body = body[:r.Intn(len(body))]
			}
		case 1:
			b := []byte(body)
			if len(b) > 0 {
				b[r.Intn(len(b))] = byte(r.Intn(256))
				body = string(b)
			}
		case 2:
			body = value(1)
		}
		if seen[body] || len(body) > 400 {
			continue
		}
		var q request
		dec := json.NewDecoder(bytes.NewReader([]byte(body)))
		err := dec.Decode(&q)
		var raw json.RawMessage
		syn := json.NewDecoder(bytes.NewReader([]byte(body))).Decode(&raw)
		v := vector{Body: []byte(body), Read: err == nil, Valid: syn == nil && len(raw) > 0 && raw[0] == '{'}
		if err == nil {
			m := cmp.Or(q.Model, q.Name)
			v.Model = &m
		}
		kind := fmt.Sprint(v.Read, v.Valid, v.Model != nil && *v.Model != "")
		if count[kind] > 700 {
			continue
		}
		count[kind]++
		seen[body] = true
		out.Encode(v)
	}
	fmt.Fprintln(os.Stderr, count)
}
