import { type ContentBlock, type FileResource, nameOfPath, newId, UPLOADS_PATH } from '@holdfast/contracts';
import { ApiError, api, apiPersistent, downloadFile, messageOf, uploadFile } from './api.ts';
import { bytes } from './format.ts';

/** A file that is to go with the next message. */
export interface Attachment {
  /** Its own, whatever becomes of it; putting it into the session is asked for under this key. */
  readonly key: string;
  readonly name: string;
  readonly sizeBytes: number;
  readonly state:
    | { readonly type: 'waiting' }
    | { readonly type: 'uploading'; readonly sentBytes: number }
    | { readonly type: 'failed'; readonly message: string; readonly isFinal: boolean }
    | { readonly type: 'uploaded'; readonly file: FileResource };
}

type Store = Pick<Storage, 'getItem' | 'setItem' | 'removeItem'>;

/** So many are sent at once: a browser opens six connections to one host, and the chat needs its own. */
const LANES = 2;
/** What a provider takes as one picture, before base64. */
const PICTURE_BYTES = 3.75 * 1024 ** 2;
/** What goes of pictures into one message; the rest is in the sandbox alone. */
const PICTURES_BYTES = 20 * 1024 ** 2;
const PICTURE_TYPES: readonly string[] = ['image/png', 'image/jpeg', 'image/gif', 'image/webp'];
const ABOUT = 'The user attached this file. It lies in the sandbox, under the path that follows.';
const CANCELLED = new DOMException('Taken away', 'AbortError');

/**
 * The files of one message that is being written: uploaded as they are added, a few at a time, and kept by the tab once
 * they are. Made for `useSyncExternalStore`.
 */
export class Attachments {
  readonly #place: string;
  readonly #store: Store;
  readonly #upload: typeof uploadFile;
  readonly #listeners = new Set<() => void>();
  readonly #sources = new Map<string, File>();
  readonly #running = new Map<string, AbortController>();
  #list: readonly Attachment[];

  /** @param place where in the tab's store uploaded ones are kept */
  constructor(place: string, parts: { store?: Store; upload?: typeof uploadFile } = {}) {
    this.#place = place;
    this.#store = parts.store ?? sessionStorage;
    this.#upload = parts.upload ?? uploadFile;
    this.#list = JSON.parse(this.#store.getItem(place) ?? '[]') as readonly Attachment[];
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };
  readonly snapshot = (): readonly Attachment[] => this.#list;

  /** Takes files in. `maxBytes` is what the server takes of one; null while that is not known. */
  add(files: readonly File[], maxBytes: number | null): void {
    const added = files.map((file): Attachment => {
      const one = { key: newId('command'), name: nameOfPath(file.name), sizeBytes: file.size };
      if (maxBytes !== null && file.size > maxBytes) {
        const message = `Larger than the ${bytes(maxBytes)} that the server takes`;
        return { ...one, state: { type: 'failed', message, isFinal: true } };
      }
      this.#sources.set(one.key, file);
      return { ...one, state: { type: 'waiting' } };
    });
    this.#change([...this.#list, ...added]);
    this.#next();
  }

  retry(key: string): void {
    this.#set(key, { type: 'waiting' });
    this.#next();
  }

  /** Takes one away: its upload is broken off, or what was uploaded is deleted. */
  remove(key: string): void {
    const one = this.#list.find((attachment) => attachment.key === key);
    this.#running.get(key)?.abort(CANCELLED);
    if (one?.state.type === 'uploaded')
      api(`/v1/files/${one.state.file.id}`, { method: 'DELETE' }).catch(() => {
        // It stays in the list of files, where it can be deleted.
      });
    this.#drop([key]);
  }

  /** They went with a message. */
  sent(list: readonly Attachment[]): void {
    this.#drop(list.map(({ key }) => key));
  }

  /** Breaks off what is being uploaded: nobody looks any more. */
  stop(): void {
    for (const controller of this.#running.values()) controller.abort(CANCELLED);
  }

  #next(): void {
    for (const { key, state } of this.#list)
      if (state.type === 'waiting' && this.#running.size < LANES) void this.#start(key);
  }

  async #start(key: string): Promise<void> {
    const source = this.#sources.get(key);
    if (source === undefined) return;
    const controller = new AbortController();
    this.#running.set(key, controller);
    this.#set(key, { type: 'uploading', sentBytes: 0 });
    try {
      const file = await this.#upload(source, nameOfPath(source.name), {
        idempotencyKey: key,
        signal: controller.signal,
        onSent: (sentBytes) => this.#set(key, { type: 'uploading', sentBytes }),
      });
      this.#sources.delete(key);
      this.#set(key, { type: 'uploaded', file });
      this.#keep();
    } catch (error) {
      const isFinal = error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429;
      this.#set(key, { type: 'failed', message: messageOf(error), isFinal });
    } finally {
      this.#running.delete(key);
      this.#next();
    }
  }

  /** Of one that was taken away nothing changes any more. */
  #set(key: string, state: Attachment['state']): void {
    this.#change(this.#list.map((one) => (one.key === key ? { ...one, state } : one)));
  }

  #drop(keys: readonly string[]): void {
    for (const key of keys) this.#sources.delete(key);
    this.#change(this.#list.filter(({ key }) => !keys.includes(key)));
    this.#keep();
  }

  #change(list: readonly Attachment[]): void {
    this.#list = list;
    for (const listener of this.#listeners) listener();
  }

  #keep(): void {
    const uploaded = this.#list.filter(({ state }) => state.type === 'uploaded');
    try {
      if (uploaded.length === 0) this.#store.removeItem(this.#place);
      else this.#store.setItem(this.#place, JSON.stringify(uploaded));
    } catch {
      // The store is full or refused: they live as long as the page.
    }
  }
}

/** Where in the sandbox a file of a message lies: by its id, so that two of one name do not meet. */
const pathOf = (file: FileResource): string => `${UPLOADS_PATH}/${file.id}/${file.filename}`;
const ATTACHED = new RegExp(`^${UPLOADS_PATH}/(file_\\w+)/([^/]+)$`);

/** What says in a message that a file came with it. */
export function attachmentBlock(file: FileResource): ContentBlock {
  return {
    type: 'document',
    title: file.filename,
    context: ABOUT,
    source: { type: 'text', media_type: 'text/plain', data: pathOf(file) },
  };
}

/** The file that such a block is about; null for any other block. */
export function attachedFile(block: ContentBlock): { readonly fileId: string; readonly name: string } | null {
  if (block.type !== 'document' || block.source.type !== 'text') return null;
  const [, fileId, name] = ATTACHED.exec(block.source.data) ?? [];
  return fileId === undefined || name === undefined ? null : { fileId, name };
}

/**
 * Puts uploaded files into a session, and resolves with what goes into its message for them: a block for each, and of
 * pictures what the model sees, as far as a message holds it. May be asked again after a failure.
 */
export async function mountAttachments(sessionId: string, list: readonly Attachment[]): Promise<ContentBlock[]> {
  const blocks: ContentBlock[] = [];
  let picturesBytes = 0;
  for (const { key, state } of list) {
    if (state.type !== 'uploaded') continue;
    const { file } = state;
    const body = { type: 'file', file_id: file.id, mount_path: pathOf(file) };
    await apiPersistent(`/v1/sessions/${sessionId}/resources`, body, `${key}-mount`);
    const { size_bytes: size, mime_type: type } = file;
    if (PICTURE_TYPES.includes(type) && size <= PICTURE_BYTES && picturesBytes + size <= PICTURES_BYTES) {
      picturesBytes += size;
      blocks.push({
        type: 'image',
        source: { type: 'base64', media_type: type, data: await base64Of(await downloadFile(file.id)) },
      });
    }
    blocks.push(attachmentBlock(file));
  }
  return blocks;
}

function base64Of(content: Blob): Promise<string> {
  const reader = new FileReader();
  return new Promise((resolve, reject) => {
    reader.onload = () => {
      const url = reader.result as string;
      resolve(url.slice(url.indexOf(',') + 1));
    };
    reader.onerror = () => reject(reader.error ?? new Error('The picture could not be read.'));
    reader.readAsDataURL(content);
  });
}
