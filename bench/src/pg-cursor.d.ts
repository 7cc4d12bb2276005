declare module 'pg-cursor' {
  import type { Submittable } from 'pg';

  /** A server-side cursor; `R` is a row as `config` asks for it. */
  class Cursor<R> implements Submittable {
    constructor(text: string, values?: readonly unknown[], config?: { rowMode?: 'array' });
    submit(connection: unknown): void;
    read(rows: number): Promise<R[]>;
    close(): Promise<void>;
  }
  export default Cursor;
}
