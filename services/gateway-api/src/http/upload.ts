import type { IncomingMessage } from 'node:http';
import type { Readable } from 'node:stream';
import { Busboy, type BusboyHeaders, type BusboyInstance } from '@fastify/busboy';
import { AppError, fileName, mimeType, unnamedFile } from '@holdfast/contracts';
import { invalidRequest } from '@holdfast/platform';
import { HttpException } from '@nestjs/common';
import type { z } from 'zod';

/** A form that sends nothing for so long is given up. */
const SILENCE_MS = 60_000;
/** What a form holds beside the file: its other fields, its parts' headers and its boundaries. */
const AROUND_BYTES = 64 * 1024;
const LIMITS_OF_PARTS = { fieldNameSize: 100, fieldSize: 4_096, parts: 16, headerPairs: 32, headerSize: 16 * 1024 };

export interface UploadRules<F extends z.ZodType> {
  readonly maxBytes: number;
  /** The fields beside `file`. */
  readonly fields: F;
}

/** A form as it was read: one file, and what `keep` made of its bytes. */
export interface Upload<F, T> {
  readonly filename: string;
  readonly mimeType: string;
  readonly fields: F;
  readonly kept: T;
}

/**
 * Reads a `multipart/form-data` body with one `file` as it arrives. The bytes that `keep` gets end only when all of the
 * form has arrived and is in order, and break off with its fault otherwise: what is kept is kept of a whole form or not at
 * all. Nothing is held in memory but what `keep` holds.
 *
 * @throws AppError `upload.…` and `request.invalid`; HttpException 413 and 408; what `keep` throws
 */
export async function receiveUpload<F extends z.ZodType, T>(
  request: IncomingMessage,
  rules: UploadRules<F>,
  keep: (bytes: AsyncIterable<Uint8Array>) => Promise<T>,
): Promise<Upload<z.infer<F>, T>> {
  const { 'content-type': type, 'content-length': length } = request.headers;
  if (type === undefined || !/^multipart\/form-data\s*;.*\bboundary=/i.test(type))
    throw new AppError('invalid', 'upload.no-form', 'The body must be multipart/form-data with a boundary.');
  if (Number(length) > rules.maxBytes + AROUND_BYTES) throw tooLarge();
  return new Form(request, { ...request.headers, 'content-type': type }, rules, keep).read();
}

class Form<F extends z.ZodType, T> {
  readonly #request: IncomingMessage;
  readonly #rules: UploadRules<F>;
  readonly #keep: (bytes: AsyncIterable<Uint8Array>) => Promise<T>;
  readonly #parser: BusboyInstance;
  readonly #given = new Map<string, string>();
  readonly #whole = Promise.withResolvers<z.infer<F>>();
  #file: { readonly stream: Readable; readonly filename: string; readonly mimeType: string; kept: Promise<T> } | null =
    null;

  constructor(
    request: IncomingMessage,
    headers: BusboyHeaders,
    rules: UploadRules<F>,
    keep: (bytes: AsyncIterable<Uint8Array>) => Promise<T>,
  ) {
    this.#request = request;
    this.#rules = rules;
    this.#keep = keep;
    this.#parser = new Busboy({
      headers,
      limits: LIMITS_OF_PARTS,
      isPartAFile: (name, _type, filename) => name === 'file' || filename !== undefined,
    });
    // Seen by whoever waits for the form; it may fail before anybody does.
    this.#whole.promise.catch(() => undefined);
  }

  async read(): Promise<Upload<z.infer<F>, T>> {
    const request = this.#request;
    const cut = (): void => {
      if (!request.complete) this.#fail(new AppError('invalid', 'upload.incomplete', 'The body did not arrive whole.'));
    };
    const silence = setTimeout(() => this.#fail(new HttpException('The form stopped arriving.', 408)), SILENCE_MS);
    request.on('data', () => silence.refresh());
    request.once('close', cut);
    request.once('error', cut);
    this.#parser
      .on('file', (name, stream, filename, _encoding, type) => this.#fileBegan(name, stream, filename, type))
      .on('field', (name, value, nameCut, valueCut) => this.#field(name, value, nameCut || valueCut))
      .on('partsLimit', () => this.#fail(new AppError('invalid', 'upload.parts', 'The form has too many parts.')))
      .on('error', (error) =>
        this.#fail(new AppError('invalid', 'upload.malformed', 'The body is not a whole form.', { cause: error })),
      )
      .on('finish', () => this.#finished());
    request.pipe(this.#parser);
    try {
      const fields = await this.#whole.promise;
      const file = this.#file;
      if (file === null) throw noFile();
      return { filename: file.filename, mimeType: file.mimeType, fields, kept: await file.kept };
    } catch (error) {
      this.#fail(error);
      // Whoever keeps the bytes has let go of them before the caller is answered.
      await this.#file?.kept.catch(() => undefined);
      throw error;
    } finally {
      clearTimeout(silence);
      request.removeListener('close', cut);
      request.unpipe(this.#parser);
    }
  }

  #fileBegan(name: string, stream: Readable, given: string | undefined, type: string): void {
    // Without a listener an error of it would end the process.
    stream.on('error', () => undefined);
    if (name !== 'file' || this.#file !== null) {
      stream.resume();
      const fault =
        name === 'file'
          ? new AppError('invalid', 'upload.files', 'The form has more than one file; send one at a time.')
          : new AppError('invalid', 'upload.field', `The form has an unknown file "${shown(name)}".`);
      this.#fail(fault);
      return;
    }
    const filename = given === undefined || given === '' ? unnamedFile(type) : given;
    const faults = nameFaults(filename, type);
    if (faults.length > 0) {
      stream.resume();
      this.#fail(invalidRequest(faults));
      return;
    }
    const kept = this.#keep(this.#bytes(stream));
    kept.catch((error: unknown) => this.#fail(error));
    this.#file = { stream, filename, mimeType: type, kept };
  }

  async *#bytes(stream: Readable): AsyncGenerator<Uint8Array, void> {
    let bytes = 0;
    for await (const piece of stream) {
      bytes += (piece as Uint8Array).length;
      if (bytes > this.#rules.maxBytes) throw tooLarge();
      yield piece as Uint8Array;
    }
    await this.#whole.promise;
  }

  #field(name: string, value: string, cut: boolean): void {
    if (!cut && !this.#given.has(name)) this.#given.set(name, value);
    else
      this.#fail(
        new AppError('invalid', 'upload.field', `The form's field "${shown(name)}" is too long or there twice.`),
      );
  }

  #finished(): void {
    const fields = this.#rules.fields.safeParse(Object.fromEntries(this.#given));
    if (this.#file === null) this.#fail(noFile());
    else if (fields.success) this.#whole.resolve(fields.data);
    else this.#fail(invalidRequest(fields.error.issues));
  }

  /** The first fault counts. The rest of the body is read and dropped, so that the client hears of it. */
  #fail(error: unknown): void {
    this.#whole.reject(error);
    this.#file?.stream.destroy(error instanceof Error ? error : new Error(String(error)));
    this.#request.unpipe(this.#parser);
    this.#request.resume();
  }
}

function nameFaults(filename: string, type: string): { message: string; path: string[] }[] {
  const of = (schema: z.ZodType, value: string, path: string) =>
    (schema.safeParse(value).error?.issues ?? []).map(({ message }) => ({ message, path: [path] }));
  return [...of(fileName, filename, 'filename'), ...of(mimeType, type, 'content-type')];
}

/** A name of a part; one that has none is `undefined`, whatever its type says. */
const shown = (name: string): string => `${name}`.slice(0, 100);

function tooLarge(): HttpException {
  return new HttpException('The file is larger than this server takes.', 413);
}

function noFile(): AppError {
  return new AppError('invalid', 'upload.no-file', 'The form has no part "file".');
}
