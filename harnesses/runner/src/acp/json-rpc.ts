import type { Readable, Writable } from 'node:stream';

/** More in one line is no message of a harness. */
const MAX_LINE_BYTES = 64 * 1024 * 1024;

interface Message {
  readonly id?: number | string | null;
  readonly method?: string;
  readonly params?: unknown;
  readonly result?: unknown;
  readonly error?: { readonly code: number; readonly message: string; readonly data?: unknown };
}

/** What the other side answered instead of a result. */
export class RpcError extends Error {
  readonly code: number;
  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

export interface JsonRpcHandlers {
  /** Called in the order of the lines, before any later answer is handed out. */
  readonly onNotification: (method: string, params: unknown) => void;
  /** @throws RpcError what is answered instead */
  readonly onRequest: (method: string, params: unknown) => Promise<unknown>;
  /** Every line from either side, without its end. */
  readonly onLine: (line: Buffer) => void;
}

/**
 * JSON-RPC, a line each way. It keeps the order of what it hears, which a session's updates and the answer that ends
 * them depend on, and lets every line be kept as it was. What is no JSON is passed over: programs print.
 */
export class JsonRpc {
  readonly #out: Writable;
  readonly #handlers: JsonRpcHandlers;
  readonly #waiting = new Map<number, { resolve: (result: unknown) => void; reject: (error: unknown) => void }>();
  #nextId = 0;
  #ended: Error | null = null;

  constructor(input: Readable, out: Writable, handlers: JsonRpcHandlers) {
    this.#out = out;
    this.#handlers = handlers;
    let parts: Buffer[] = [];
    let bytes = 0;
    input.on('data', (piece: Buffer) => {
      let rest = piece;
      for (let end = rest.indexOf(10); end !== -1; end = rest.indexOf(10)) {
        parts.push(rest.subarray(0, end));
        if (bytes <= MAX_LINE_BYTES) this.#onLine(Buffer.concat(parts));
        [parts, bytes] = [[], 0];
        rest = rest.subarray(end + 1);
      }
      bytes += rest.length;
      if (bytes <= MAX_LINE_BYTES) parts.push(rest);
      else parts = [];
    });
    input.on('error', () => undefined);
    out.on('error', () => undefined);
  }

  /** @throws RpcError what the other side answered; the reason of {@link end} */
  request<R>(method: string, params: object): Promise<R> {
    if (this.#ended !== null) return Promise.reject(this.#ended);
    const id = this.#nextId++;
    return new Promise<R>((resolve, reject) => {
      this.#waiting.set(id, { resolve: (result) => resolve(result as R), reject });
      this.#send({ id, method, params });
    });
  }

  notify(method: string, params: object): void {
    this.#send({ method, params });
  }

  /** The other side is gone: whoever waits is told why. */
  end(reason: Error): void {
    this.#ended ??= reason;
    for (const { reject } of this.#waiting.values()) reject(this.#ended);
    this.#waiting.clear();
  }

  #send(message: Message): void {
    if (this.#ended !== null) return;
    const line = Buffer.from(JSON.stringify({ jsonrpc: '2.0', ...message }));
    this.#handlers.onLine(line);
    this.#out.write(Buffer.concat([line, Buffer.from('\n')]));
  }

  #onLine(line: Buffer): void {
    let message: Message;
    try {
      message = JSON.parse(line.toString('utf8')) as Message;
      if (typeof message !== 'object' || message === null) return;
    } catch {
      return;
    }
    this.#handlers.onLine(line);
    const { id, method } = message;
    if (method === undefined) {
      const waiting = typeof id === 'number' ? this.#waiting.get(id) : undefined;
      if (waiting === undefined) return;
      this.#waiting.delete(id as number);
      if (message.error === undefined) waiting.resolve(message.result);
      else waiting.reject(new RpcError(message.error.code, message.error.message));
    } else if (id === undefined || id === null) {
      this.#handlers.onNotification(method, message.params);
    } else {
      void this.#handlers.onRequest(method, message.params).then(
        (result) => this.#send({ id, result }),
        (error: unknown) => {
          const { code = -32603, message: text = String(error) } = error as Partial<RpcError>;
          this.#send({ id, error: { code, message: text } });
        },
      );
    }
  }
}
