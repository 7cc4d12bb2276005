import { FilesPage } from '../../../../../components/files-page.tsx';

export const metadata = { title: 'Files' };

export default async function Page({ params }: { params: Promise<{ id: string }> }) {
  const { id } = await params;
  return <FilesPage key={id} id={id} />;
}
