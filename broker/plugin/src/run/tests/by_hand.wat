;; A filter whose answer is written by hand: the shape of the filter world, and a way to sleep.
(component
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $p (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $p))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (alias outer 1 $pollable (type $outer))
    (export "pollable" (type $p (eq $outer)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core instance $host
    (export "subscribe" (func $subscribe))
    (export "block" (func $block)))
  (core module $m
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "host" "block" (func $block (param i32)))
    (memory (export "memory") 1)
    (global $top (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
      (global.set $top (i32.add (local.get $at) (local.get 3)))
      (local.get $at))
    ;; ok(needs = nothing)
    (func (export "init")
      (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (i32.store8 (i32.const 4) (i32.const 0))
      (i32.store8 (i32.const 8) (i32.const 0))
      (i32.const 4))
    (func (export "filter")
      (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (; body ;)))
  (core instance $i (instantiate $m (with "host" (instance $host))))
  (import "millstream:plugin/types@0.1.0" (instance $types
    (type $b (record
      (field "input" u32) (field "partition" u32) (field "data" (list u8))
      (field "offsets" (list s64)) (field "timestamps" (list s64))
      (field "spans" (list u32)) (field "headers" (list u32))))
    (export "batch" (type (eq $b)))
    (type $e (variant
      (case "retry" string) (case "fatal" string) (case "bad-record" (tuple u32 string))))
    (export "error" (type (eq $e)))))
  (alias export $types "batch" (type $batch))
  (alias export $types "error" (type $error))
  (func $filter (param "b" $batch) (result (result (list u8) (error $error)))
    (canon lift (core func $i "filter")
      (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
  (type $needs (flags "keys" "values" "headers" "timestamps" "offsets"))
  (type $context (record
    (field "tenant" string) (field "module" string) (field "partition" (option u32))
    (field "inputs" (list string)) (field "outputs" (list string))
    (field "config" (list (tuple string string)))))
  (func $init (param "ctx" $context) (result (result $needs (error string)))
    (canon lift (core func $i "init")
      (memory (core memory $i "memory")) (realloc (core func $i "realloc"))))
  (component $lifecycle
    (type $n (flags "keys" "values" "headers" "timestamps" "offsets"))
    (type $c (record
      (field "tenant" string) (field "module" string) (field "partition" (option u32))
      (field "inputs" (list string)) (field "outputs" (list string))
      (field "config" (list (tuple string string)))))
    (import "needs" (type $n' (eq $n)))
    (import "init-context" (type $c' (eq $c)))
    (import "init" (func $f (param "ctx" $c') (result (result $n' (error string)))))
    (export $en "needs" (type $n'))
    (export $ec "init-context" (type $c'))
    (export "init" (func $f) (func (param "ctx" $ec) (result (result $en (error string))))))
  (instance $lifecycle-i (instantiate $lifecycle
    (with "needs" (type $needs)) (with "init-context" (type $context)) (with "init" (func $init))))
  (export "millstream:plugin/lifecycle@0.1.0" (instance $lifecycle-i))
  (component $filter-c
    (type $b (record
      (field "input" u32) (field "partition" u32) (field "data" (list u8))
      (field "offsets" (list s64)) (field "timestamps" (list s64))
      (field "spans" (list u32)) (field "headers" (list u32))))
    (import "batch" (type $b' (eq $b)))
    (type $e (variant
      (case "retry" string) (case "fatal" string) (case "bad-record" (tuple u32 string))))
    (import "error" (type $e' (eq $e)))
    (import "filter" (func $f (param "b" $b') (result (result (list u8) (error $e')))))
    (export "filter" (func $f)))
  (instance $filter-i (instantiate $filter-c
    (with "batch" (type $batch)) (with "error" (type $error)) (with "filter" (func $filter))))
  (export "millstream:plugin/filter@0.1.0" (instance $filter-i)))
