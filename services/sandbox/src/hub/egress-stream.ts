import { Duplex } from 'node:stream';
import type { WebSocket } from 'ws';

const END = Buffer.alloc(0);

/**
 * One connection out of a sandbox, carried by a WebSocket: binary messages are its bytes, an empty one ends a direction and
 * leaves the other open, as TCP does. A WebSocket that closes without it is a reset.
 */
export class EgressStream extends Duplex {
  readonly #socket: WebSocket;
  #heardEnd = false;

  constructor(socket: WebSocket) {
    super({ allowHalfOpen: true });
    this.#socket = socket;
    // A reset is nothing that anybody must listen for; its end is told as every stream's.
    this.on('error', () => undefined);
    socket.on('message', (data, isBinary) => {
      if (!isBinary || !Buffer.isBuffer(data)) this.destroy(new Error('The runner sent what are no bytes.'));
      else if (data.length > 0) this.#take(data);
      else {
        this.#heardEnd = true;
        this.push(null);
      }
    });
    socket.on('error', (error) => this.destroy(error));
    socket.on('close', () => {
      if (!this.#heardEnd) this.destroy(new Error('The connection was reset in the sandbox.'));
      // What it had sent is still read.
      else if (this.readableEnded) this.destroy();
      else this.once('end', () => this.destroy());
    });
  }

  #take(data: Buffer): void {
    if (!this.push(data)) this.#socket.pause();
  }

  override _read(): void {
    this.#socket.resume();
  }

  override _write(bytes: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    if (bytes.length === 0) done();
    else this.#socket.send(bytes, { binary: true }, done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#socket.send(END, { binary: true }, done);
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    if (error === null && this.#heardEnd && this.writableFinished) this.#socket.close();
    else this.#socket.terminate();
    done(error);
  }
}
