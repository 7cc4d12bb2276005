import type { z } from 'zod';
import type { Exchange } from '../http/exchange.ts';

/** One route: what it takes, and what answers it. The server, the checks and the OpenAPI document derive from it. */
export interface Operation<S extends z.ZodType = z.ZodType> {
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** With `:name` parameters. */
  readonly path: string;
  readonly id: string;
  readonly summary: string;
  /** False = answers callers without a credential. */
  readonly authenticated?: boolean;
  readonly body?: S;
  /** What a 200 holds; of a stream, what a frame's `data` holds; of lines, what each is. */
  readonly answer: z.ZodType;
  /** True when the body carries content and may be as large as `LIMITS.contentBodyBytes`. */
  readonly takesContent?: boolean;
  /** Query parameters, for the document; each operation reads its own. */
  readonly query?: readonly string[];
  /** Set when the body is a form with one `file`, which `handle` reads as it arrives: the form's other fields. */
  readonly upload?: z.ZodType;
  /** True when the answer is bytes, which may be many. */
  readonly downloads?: boolean;
  /** True when `handle` writes the answer by itself. */
  readonly streams?: boolean;
  /** True when `handle` gives an `AsyncIterable<string>` of lines of JSON, which are sent as the caller takes them. */
  readonly lines?: boolean;
  readonly handle: (exchange: Exchange<z.infer<S>>) => Promise<unknown>;
}

/** Keeps the body's type while the operations are kept in one list. */
export function operation<S extends z.ZodType>(declaration: Operation<S>): Operation {
  return declaration as unknown as Operation;
}
