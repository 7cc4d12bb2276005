'use client';
import { type FileResource, OUTPUTS_PATH } from '@holdfast/contracts';
import { ArrowLeft, Download, FileText, FolderOutput } from 'lucide-react';
import Link from 'next/link';
import { downloadHref } from '../lib/api.ts';
import { bytes } from '../lib/format.ts';
import { Paged, usePages } from './paged.tsx';
import { buttonClass, cn, Empty, Id, PageHeader, Panel, rowLink, Time } from './ui.tsx';

const REFRESH_MS = 5_000;
const columns = 'sm:grid-cols-[minmax(0,1fr)_6rem_7rem_1rem]';

/** What a session's agent left as its work: files of their own, which stay when its sandbox is gone. */
export function FilesPage({ id }: { id: string }) {
  const list = usePages<FileResource>(['outputs', id], `/v1/files?scope_id=${id}&limit=50`, REFRESH_MS);
  return (
    <div className="mx-auto w-full max-w-5xl p-4 md:p-6">
      <PageHeader title="Files" about={<Id id={id} />}>
        <Link className={buttonClass('plain')} href={`/sessions/${id}`}>
          <ArrowLeft className="size-4" aria-hidden /> Chat
        </Link>
      </PageHeader>
      <h2 className="text-sm font-medium">Outputs</h2>
      <p className="mb-2 text-sm text-soft">
        What the agent leaves below <code className="font-mono text-xs">{OUTPUTS_PATH}</code> is here once its turn is
        over.
      </p>
      <Panel className="overflow-hidden">
        <Paged list={list} empty={<Empty icon={<FolderOutput />} title="The agent has left no files yet" />}>
          <div
            aria-hidden
            className={cn('hidden gap-x-4 border-b px-4 py-2 text-xs font-medium text-soft sm:grid', columns)}
          >
            <span>File</span>
            <span className="text-right">Size</span>
            <span className="text-right">Kept</span>
          </div>
          <ul className="divide-y">
            {list.items.map((file) => (
              <FileRow key={file.id} file={file} />
            ))}
          </ul>
        </Paged>
      </Panel>
    </div>
  );
}

function FileRow({ file }: { file: FileResource }) {
  const { filename, x_path: path = filename } = file;
  const folder = path.slice(0, path.lastIndexOf('/') + 1);
  return (
    <li
      className={cn(
        'relative grid grid-cols-[minmax(0,1fr)_auto_1rem] items-center gap-x-4 px-4 py-2.5 text-sm hover:bg-raised/60',
        columns,
      )}
    >
      <a
        href={downloadHref(file.id)}
        download={filename}
        title={`Download ${path}`}
        className={cn('flex min-w-0 items-center gap-2 max-sm:col-span-2', rowLink)}
      >
        <FileText className="size-4 shrink-0 text-soft" aria-hidden />
        <span className="min-w-0 truncate">
          {folder === '' ? null : <span className="text-soft">{folder}</span>}
          <span className="font-medium">{filename}</span>
        </span>
      </a>
      <span className="text-xs text-soft tabular-nums max-sm:row-start-2 max-sm:pl-6 sm:text-right">
        {bytes(file.size_bytes)}
      </span>
      <span className="text-right text-xs text-soft max-sm:row-start-2">
        <Time at={file.created_at} />
      </span>
      <Download className="size-4 text-soft max-sm:row-span-2 max-sm:row-start-1 max-sm:col-start-3" aria-hidden />
    </li>
  );
}
