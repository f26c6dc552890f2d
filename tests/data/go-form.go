// Records what Go makes of multipart forms, for src/route: go run tests/data/go-form.go > tests/data/go-form.jsonl
// (Recorded with go1.26.8. The seed is fixed; another release of Go may draw other numbers from it.)
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand"
	"net/http"
	"net/url"
	"os"
	"strings"
)

var r = rand.New(rand.NewSource(2026))

func pick(s ...string) string { return s[r.Intn(len(s))] }

// Mostly the first, now and then one of the others.
func mostly(usual string, odd ...string) string {
	if r.Intn(40) > 0 {
		return usual
	}
	return pick(odd...)
}

func contentType(boundary string) string {
	kind := mostly("multipart/form-data", "Multipart/Form-Data ", "multipart/mixed", "text/plain", "multipart/form-data;", "", "multipart/form-data x")
	quoted := mostly(boundary, `"`+boundary+`"`, `"`+boundary+`" `, `"`+boundary, `'`+boundary+`'`, ` `+boundary, `"`+boundary[:1]+`\`+boundary[1:]+`"`, "", "other")
	parameter := mostly("; boundary="+quoted, ";boundary="+quoted, "; Boundary="+quoted, "; charset=utf-8; boundary="+quoted, "; boundary="+quoted+";",
		"; boundary="+quoted+"; boundary=zz", "; boundary="+quoted+"; boundary="+quoted, "; boundary*=utf-8''"+quoted, "; boundary*0="+quoted[:len(quoted)/2]+"; boundary*1="+quoted[len(quoted)/2:],
		"; boundary ="+quoted, "; boundary= "+quoted, "", " boundary="+quoted)
	return kind + parameter
}

func disposition() string {
	name := pick("model", "model", "file", "language", "Model", "model ", "")
	quoted := mostly(`"`+name+`"`, name, `"`+name, `"mod\"el"`, `"mo\del"`, `"mod\\el"`, `"`+name+`"x`, `'`+name+`'`)
	parameter := mostly(`; name=`+quoted, `;name=`+quoted, `; NAME=`+quoted, `; name*=utf-8''`+name, `; name*=UTF-8''%6dodel`, `; name*0=mo; name*1=del`, `; name=`+quoted+`; name="model"`,
		`; name="x"; name*=utf-8''model`, `; name =`+quoted, `; name= `+quoted, ``, `; x="; name=\"model\""; name=file`, `; name=file; x="`+"\t"+`"; y=";name=model"`)
	file := mostly("", `; filename="a.wav"`, `; filename="a\"; name=\"model"`, `; filename="C:\a.wav"`, `; filename="a\"`, `; filename*=utf-8''%c3%a4.wav`, `; filename=""`, `; filename=`, `; filename="; name=model"`, `;`)
	if name == "file" {
		file = pick(`; filename="a.wav"`, `; filename="a.wav"`, `; filename="C:\new\a.wav"`, `; filename*=utf-8''%c3%a4.wav`, "; filename=\"\xe4.wav\"")
	}
	kind := mostly("form-data", "Form-Data", "attachment", "form-data x", "", "inline")
	if r.Intn(8) == 0 {
		return kind + file + parameter
	}
	return kind + parameter + file
}

func head(nl string) string {
	lines := []string{mostly("Content-Disposition: ", "content-disposition:", "CONTENT-DISPOSITION:\t", "Content-Disposition : ", " Content-Disposition: ", "Content-Disposition", "X: ") + disposition()}
	if r.Intn(4) == 0 {
		lines = append(lines, pick("Content-Type: audio/wav", "Content-Type: text/plain; charset=utf-8", "X-A:b", "bad line", " folded; name=model", "X-B: a\x00b", "Content-Disposition: form-data; name=\"model\"",
			"Content-Transfer-Encoding: binary", "Content-Transfer-Encoding: quoted-printable", "content-transfer-encoding: Quoted-Printable", "Content-Transfer-Encoding: base64", "X-C: a\rb", "", "X-D: \xff"))
	}
	r.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	return strings.Join(lines, nl) + nl + nl
}

func body(boundary string) string {
	nl := mostly("\r\n", "\n")
	var b strings.Builder
	b.WriteString(mostly("", nl, "preamble"+nl, "--"+nl, " "))
	for n := 1 + r.Intn(3); n > 0; n-- {
		b.WriteString("--" + boundary + mostly("", " ", "\t", "x", "-") + mostly(nl, "\n", "\r", ""))
		b.WriteString(mostly(head(nl), head("\n"), head("\r\n"), nl, ""))
		b.WriteString(mostly(pick("m", "x:cloud", " m ", "n"), "", "m\r\nn", "m\r", "m\r\n", "\r\nm", "=6d", "m=\r\nn", "--"+boundary, "\r\n--"+boundary+"x", "\r\n--"+boundary[:1], "m\xff", "\r\r\nm", "m\n--"+boundary))
		b.WriteString(mostly(nl, "\n", "", "\r\n\r\n"))
	}
	b.WriteString("--" + boundary + mostly("--", "", "-", "-- ", "--x") + mostly(nl, "", "\n", nl+"epilogue --"+boundary+nl))
	s := b.String()
	switch r.Intn(24) {
	case 0:
		s = s[:r.Intn(len(s))]
	case 1:
		c := []byte(s)
		c[r.Intn(len(c))] = byte(r.Intn(256))
		s = string(c)
	}
	return s
}

type vector struct {
	Type  string  `json:"type"`
	Query string  `json:"query,omitempty"`
	Body  []byte  `json:"body"` // base64
	Model *string `json:"model,omitempty"`
	Count int     `json:"count,omitempty"` // values of model, in the form and in the query
}

func main() {
	out := json.NewEncoder(os.Stdout)
	seen := map[string]bool{}
	count := map[string]int{}
	for len(seen) < 1500 {
		boundary := mostly("xYz", "a.b_c", "0123456789012345678901234567890123456789012345678901234567890123456789", "a'b", "a", "=_x")
		if r.Intn(40) == 0 {
			boundary = pick("01234567890123456789012345678901234567890123456789012345678901234567890", "a b", "a{b")
		}
		v := vector{Type: contentType(boundary), Body: []byte(body(boundary)), Query: mostly("", "model=q", "model=", "Model=q", "a=b&model=q&model=r", "%6dodel=q%20r", "model=%zz", "a=%zz", "model;x=1", "model")}
		key := v.Type + v.Query + string(v.Body)
		if seen[key] {
			continue
		}
		q := &http.Request{Method: "POST", URL: &url.URL{Path: "/v1/audio/transcriptions", RawQuery: v.Query}, Header: http.Header{"Content-Type": {v.Type}}, Body: http.NoBody}
		q.Body = readCloser{bytes.NewReader(v.Body)}
		if q.ParseMultipartForm(25<<20) == nil {
			m := q.FormValue("model")
			v.Model = &m
			v.Count = len(q.Form["model"])
		}
		kind := fmt.Sprint(v.Model != nil, v.Count)
		if count[kind] > 600 {
			continue
		}
		count[kind]++
		seen[key] = true
		out.Encode(v)
	}
	fmt.Fprintln(os.Stderr, count)
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }
