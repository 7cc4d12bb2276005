import {
  AppError,
  type CreateFileBody,
  deleted,
  type FileResource,
  fileResource,
  newId,
  pageOf,
  uploadFields,
} from '@holdfast/contracts';
import type { BlobStore } from '@holdfast/event-store';
import { z } from 'zod';
import type { CatalogueReader } from '../data/catalogue.reader.ts';
import type { Commands } from '../http/exchange.ts';
import { receiveUpload } from '../http/upload.ts';
import { pathId } from './catalogue.operations.ts';
import { type Operation, operation } from './operation.ts';

export function fileOperations(parts: {
  reader: CatalogueReader;
  commands: Commands;
  /** Of files alone. */
  blobs: BlobStore;
  maxBytes: number;
}): Operation[] {
  const { reader, commands, blobs, maxBytes } = parts;
  return [
    operation({
      method: 'POST',
      path: '/v1/files',
      id: 'uploadFile',
      summary: 'Upload a file: a form with one part `file`. Answered once it is stored.',
      answer: fileResource,
      upload: uploadFields,
      handle: async (exchange) => {
        const { workspaceId } = exchange.principal;
        const { filename, mimeType, fields, kept } = await receiveUpload(
          exchange.request.raw,
          { maxBytes, fields: uploadFields },
          (bytes) => blobs.put(workspaceId, bytes),
        );
        const body: CreateFileBody = {
          filename,
          mimeType,
          digest: kept.digest,
          sizeBytes: kept.sizeBytes,
          expiresInSeconds: fields.expires_in_seconds ?? null,
          output: null,
        };
        return commands.send<FileResource>(
          'file',
          newId('file'),
          'create',
          exchange.command(body, exchange.idempotencyOf(body)),
        );
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/files',
      id: 'listFiles',
      summary: 'List files, newest first; of one session, or those named.',
      answer: pageOf(fileResource),
      query: ['limit', 'page', 'scope_id', 'ids[]'],
      handle: (exchange) => reader.files(exchange.principal.workspaceId, exchange.query),
    }),
    operation({
      method: 'GET',
      path: '/v1/files/:id',
      id: 'retrieveFile',
      summary: 'A file’s metadata.',
      answer: fileResource,
      handle: async (exchange) =>
        (await reader.file(exchange.principal.workspaceId, pathId(exchange, 'file'))).resource,
    }),
    operation({
      method: 'GET',
      path: '/v1/files/:id/content',
      id: 'downloadFile',
      summary: 'A file’s bytes.',
      answer: z.string(),
      downloads: true,
      handle: async (exchange) => {
        const { workspaceId } = exchange.principal;
        const { resource, digest } = await reader.file(workspaceId, pathId(exchange, 'file'));
        if (resource.expires_at !== null && Date.parse(resource.expires_at) <= Date.now())
          throw new AppError('not-found', 'file.expired', `The file ${resource.id} has expired.`, {
            details: { errorCode: 'file_expired' },
          });
        const bytes = await blobs.get(workspaceId, digest);
        exchange.reply.headers({
          'content-type': resource.mime_type,
          'content-length': resource.size_bytes,
          'content-disposition': attachment(resource.filename),
          // Whatever a browser is led to take it for, it runs nothing of it.
          'content-security-policy': "sandbox; default-src 'none'",
          'cache-control': 'private, no-transform',
        });
        return bytes;
      },
    }),
    operation({
      method: 'DELETE',
      path: '/v1/files/:id',
      id: 'deleteFile',
      summary: 'Delete a file.',
      answer: deleted('file_deleted'),
      handle: (exchange) =>
        commands.send('file', pathId(exchange, 'file'), 'delete', exchange.command({}, exchange.idempotency)),
    }),
  ];
}

/** `Content-Disposition` of a download; the second form is for names that are not plain ASCII (RFC 6266). */
function attachment(filename: string): string {
  const plain = filename.replace(/[^\x20-\x7e]|["\\%]/g, '_');
  const encoded = encodeURIComponent(filename).replace(/['()*]/g, (char) => `%${char.charCodeAt(0).toString(16)}`);
  return `attachment; filename="${plain}"; filename*=UTF-8''${encoded}`;
}
